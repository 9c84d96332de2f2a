"Sessions that an earlier learner sorted: shown as they were, told so, and never mixed with what the learner in use says"
import io, json, re, shutil, threading
from pathlib import Path
import numpy as np, pytest, sqlalchemy as sa
from mednist_fastai.learner import open_learner
from mednist_fastai.sort import classify_folder
from mednist_fastai.store import Store, predictions
from mednist_fastai.web.accounts import set_password
from mednist_fastai.web.box import Box, counts, rows, take
from person import Person, picture
from test_sort_multilabel import draw, make_learner

BEFORE = Path(__file__).parent.parent/'nbs/experiments/learners/mednist-before' # the same classes as the learner in the package

class Home:
    "What `retrain` makes and switches, without torch, which it takes seconds to load"
    def __init__(self, at):
        self.at,self.names = at,[]
        for i,o in enumerate((open_learner(), open_learner(BEFORE))):
            self.names.append(f'{i+1:04}-{o.digest[:8]}')
            shutil.copytree(o.path, at/'versions'/self.names[-1])
        self.use(0)
    def use(self, i): (self.at/'home.json').write_text(json.dumps(dict(current=self.names[i], history=[dict(time='2026-01-01', what='begin', version=self.names[0], before=None)])))

@pytest.fixture
def home(tmp_path): return Home(tmp_path/'home')

@pytest.fixture
def store(tmp_path):
    with Store.create(tmp_path/'store', 'ann') as s: set_password(s, 'ann', 'correct horse 1', 'ann')
    return tmp_path/'store'

@pytest.fixture(scope='module')
def images(tmp_path_factory):
    from mednist_fastai.phantom import make_phantoms
    df = make_phantoms(tmp_path_factory.mktemp('phantoms'), n=1)
    return [(f'{l}.png', Path(p).read_bytes()) for l,p in zip(df.label, df.path)]

def box_of(app):
    st = app.extensions['mednist']
    (at,) = st.runs.sessions.iterdir()
    return Box.open(st.settings, at.name)

def close(app): app.extensions['mednist'].close()
def told(box): return [tuple(o) for o in rows(box)[0]]
def table(html): return re.search(r'<table class="files">.*?</table>', html, re.S)[0]
def chart(html): return re.search(r'<table class="bars">.*?</table>', html, re.S)[0]
def short(lf): return lf.digest[:12]

def test_after_a_promotion(site, home, images, store, monkeypatch):
    app = site(home=home.at, learner=home.at, store=store)
    st,ann = app.extensions['mednist'],Person(app)
    ann.sign_in('ann', 'correct horse 1')
    before,seen,old = table(ann.sort(*images)),chart(ann.get('/file/1/').text),st.runs.learner
    home.use(1)
    st.runs.reopen()
    new,box = st.runs.learner,box_of(app)
    assert new.labels==old.labels and new.digest!=old.digest
    html = ann.get('/').text
    assert table(html)==before and 'sorted by an earlier learner' in html and short(old) in html and short(new) in html
    html = ann.get('/file/1/').text # the numbers of the one that sorted, and its name
    assert chart(html)==seen and 'Sorted by an earlier learner' in html and short(old) in html
    asked = []
    monkeypatch.setattr(st.cams, 'start', lambda path, lf, label, at: not asked.append(lf.digest))
    ann.post('/file/1/cam', dict(label='CXR'))
    assert asked==[old.digest]
    # nothing is added to it, and nothing of it is lost
    r,was = ann.upload(('late.png', picture(1))),told(box)
    assert r.status_code==409 and 'Sort all of it again' in r.text and short(old) in r.text and told(box)==was and len(list(box.files.iterdir()))==len(images)
    r = ann.post('/upload', files=[('late.png', picture(1))], headers={'HX-Request':'true', 'Accept-Language':'fr'})
    assert r.status_code==409 and 'Triez tout à nouveau' in r.text and '<html' not in r.text
    assert len(ann.zip().namelist())==len(images)+1
    # what goes into the store is what that learner said
    ann.post('/review/keep')
    st.keeper.submit(int).result()
    with st.store.read() as con: assert set(con.execute(sa.select(predictions.c.learner)).scalars())=={old.digest}
    digest = st.store.find().digest[0]
    assert f'({short(old)}) is not the one in use now' in ann.get(f'/review/{digest}').text
    # all of it again, by the one in use
    assert ann.post('/again', dict(all=1)).status_code==302
    html = ann.wait()
    assert 'earlier learner' not in html and 'Send to review' in html and box.learner().digest==new.digest and counts(box)['all']==len(images)
    got = {r['name']:np.array(json.loads(r["probs"])) for r in rows(box)[0]}
    (box.root/'in').mkdir(); [(box.root/'in'/n).write_bytes(b) for n,b in images]
    want = classify_folder(box.root/'in', box.root/'out', new, progress=False, device='cpu')
    for r in want.itertuples(): np.testing.assert_allclose(got[Path(r.path).name], [getattr(r, f'p_{l}') for l in new.labels], atol=1e-5)
    assert 'late.png' in ann.sort(('late.png', picture(1)))
    home.use(0)
    st.runs.reopen()
    assert short(new) in (html := ann.get('/').text) and 'sorted by an earlier learner' in html

def test_a_session_that_is_being_sorted_is_finished_by_its_learner(site, home, images, monkeypatch):
    from mednist_fastai.infer import Predictor
    gate,real = threading.Event(),Predictor.predict
    def slow(self, *a, **kw): gate.wait(20); yield from real(self, *a, **kw)
    monkeypatch.setattr(Predictor, 'predict', slow)
    app = site(home=home.at, learner=home.at)
    ann,old = Person(app),app.extensions['mednist'].runs.learner
    ann.upload(*images[:3])
    home.use(1)
    app.extensions['mednist'].runs.reopen()
    assert ann.upload(*images[3:]).status_code==302 # in time: the same run takes them
    gate.set()
    html = ann.wait()
    assert 'sorted by an earlier learner' in html and box_of(app).learner().digest==old.digest and counts(box_of(app)).get('', 0)==0

def test_after_a_start_with_another_learner(site, images):
    "The first is gone from this server; a file that it didn't come to any more is not sorted by the second unasked"
    app = site()
    ann = Person(app)
    ann.sort(*images[:3])
    box,cookie,first = box_of(app),ann.client.get_cookie('mednist').value,app.extensions['mednist'].runs.learner
    close(app)
    take(box, [('late.png', io.BytesIO(images[4][1]))])
    app = site(learner=BEFORE)
    ann = Person(app)
    ann.client.set_cookie('mednist', cookie)
    html = ann.get('/').text
    assert '1 file came too late' in html and counts(box)['']==1 and box.learner().digest==first.digest
    look = ann.get('/file/1/').text
    assert 'no map of where it looked' in look and 'id="cam-form"' not in look and ann.post('/file/1/cam').status_code==404
    ann.post('/again') # goes on, but not with two learners
    assert counts(box)['']==1
    ann.post('/again', dict(all=1))
    assert 'late.png' in ann.wait() and counts(box).get('', 0)==0 and box.learner().digest==app.extensions['mednist'].runs.learner.digest

def test_a_run_that_was_cut_off_is_begun_anew_by_another_learner(site, images):
    app = site()
    close(app)
    box = Box.create(app.extensions['mednist'].settings)
    take(box, [(n, io.BytesIO(b)) for n,b in images[:3]])
    classify_folder(box.files, box.folder(open_learner().digest), progress=False, device='cpu') # killed before its result was written down
    app = site(learner=BEFORE)
    run = app.extensions['mednist'].runs.active.get(box.sid)
    if run: run.future.result(60)
    assert box.note('error')=='' and counts(box).get('', 0)==0 and box.learner().digest==open_learner(BEFORE).digest

def test_thresholds_are_those_of_the_learner_that_spoke(site, store, tmp_path):
    "Two learners with the same findings and other thresholds"
    one,two = (make_learner(tmp_path/n, labels=['Left','Right','Top'], thresholds=t) for n,t in (('one',(.5,.6,.99)),('two',(.1,.1,.1))))
    for i,(l,r) in enumerate([(0,0),(220,220)]): draw(tmp_path/f'{i}.png', l, r, i)
    app = site(learner=one, store=store)
    ann = Person(app)
    ann.sign_in('ann', 'correct horse 1')
    ann.sort(*[(f'{i}.png', (tmp_path/f'{i}.png').read_bytes()) for i in range(2)])
    ann.post('/review/keep')
    app.extensions['mednist'].keeper.submit(int).result()
    cookie,seen = ann.client.get_cookie('mednist').value,chart(ann.get('/file/2/').text)
    assert 'from 99.00' in seen
    close(app)
    app = site(learner=two, store=store)
    ann = Person(app)
    ann.client.set_cookie('mednist', cookie)
    assert chart(ann.get('/file/2/').text)==seen
    for d in app.extensions['mednist'].store.find().digest:
        html = ann.get(f'/review/{d}').text
        assert 'is not the one in use now' in html and 'from 10.00' not in html and '<line' not in html

def test_one_class_after_several_findings(site, tmp_path):
    "Words and columns are those of the session's learner, the footer's those of the one in use"
    draw(tmp_path/'a.png', 220, 220)
    app = site(learner=make_learner(tmp_path/'halves'))
    ann = Person(app)
    ann.sort(('a.png', (tmp_path/'a.png').read_bytes()))
    cookie = ann.client.get_cookie('mednist').value
    close(app)
    app = site()
    ann = Person(app)
    ann.client.set_cookie('mednist', cookie)
    html = ann.get('/').text
    assert '>Findings<' in html and f'{len(open_learner().labels)} classes' in html and 'the thresholds from which they count' in ann.get('/file/1/').text
    assert len(ann.zip().namelist())==2

def test_similar_images_by_the_learner_of_the_index(site, home, images, tmp_path):
    "An index goes on with the version that made it, and says so"
    pytest.importorskip('faiss', reason="similar images need the extra 'search'")
    from mednist_fastai.search import OtherLearnerError, SearchIndex
    (tmp_path/'in').mkdir()
    for n,b in images: (tmp_path/'in'/n).write_bytes(b)
    SearchIndex.create(tmp_path/'index').index(tmp_path/'in')
    app = site(home=home.at, index=tmp_path/'index')
    app.extensions['mednist'].close()
    home.use(1)
    app = site(home=home.at, learner=home.at, index=tmp_path/'index')
    ann = Person(app)
    ann.sort(*images[:1])
    html = ann.get('/file/1/similar').text
    assert '<li>' in html and 'Similar in the eyes of another learner' in html and short(open_learner()) in html
    close(app)
    with pytest.raises(OtherLearnerError): site(learner=BEFORE, index=tmp_path/'index')
