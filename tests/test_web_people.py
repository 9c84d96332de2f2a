"The page for people who sign in: who may do what, labels that nobody loses, similar images, the learner's home"
import io, json, os, random, re, shutil, signal, subprocess, sys, threading, time
from functools import partial
from collections import Counter
from http.client import HTTPException
from pathlib import Path
import pytest, sqlalchemy as sa
from mednist_fastai.learner import open_learner
from mednist_fastai.store import Store, audits, comments, images, labels, users
from mednist_fastai.web import create_app
from mednist_fastai.web.accounts import end_seats, make_token, set_password, token_user
from mednist_fastai.web.settings import Settings
from person import Browser, Person, free_port, picture

WORDS = dict(ann='correct horse 1', bob='battery staple 2', cat='tall window 33')

@pytest.fixture(scope='module')
def phantoms(tmp_path_factory):
    from mednist_fastai.phantom import make_phantoms
    at = tmp_path_factory.mktemp('phantoms')
    make_phantoms(at, n=4)
    return at

def new_app(at, **kw): return create_app(Settings(**{'data':at/'data', 'store':at/'store', 'device':'cpu', 'spare':0, **kw}))

@pytest.fixture(scope='module')
def first_store(tmp_path_factory):
    "Made once; each test has a copy"
    at = tmp_path_factory.mktemp('first')/'store'
    with Store.create(at, 'ann') as s:
        s.add_user('bob', 'reviewer', 'ann'); s.add_user('cat', 'reader', 'ann')
        for n,w in WORDS.items(): set_password(s, n, w, n)
    return at

@pytest.fixture
def store(tmp_path, first_store): return shutil.copytree(first_store, tmp_path/'store')

@pytest.fixture
def site(site, store): "With a store"; return partial(site, store=store)

@pytest.fixture
def app(site): return site()

def signed_in(app, name):
    p = Person(app)
    assert p.sign_in(name, WORDS[name]).status_code==302
    return p

@pytest.fixture(scope='module')
def first_full(tmp_path_factory, first_store, phantoms):
    "Folders of a server with 24 images to review, and the cookie of a reviewer; made once"
    at = tmp_path_factory.mktemp('full')
    shutil.copytree(first_store, at/'store')
    app = new_app(at)
    bob = signed_in(app, 'bob')
    bob.sort(*[(f'{i}.png', o.read_bytes()) for i,o in enumerate(sorted(phantoms.glob('*/*.png')))])
    keep(bob)
    app.extensions['mednist'].close()
    return at,bob.client.get_cookie('mednist').value

@pytest.fixture
def full(site, tmp_path, first_full):
    "An application with 24 images to review, and a reviewer"
    for o in ('data','store'): shutil.copytree(first_full[0]/o, tmp_path/o, dirs_exist_ok=True)
    app = site()
    bob = Person(app)
    bob.client.set_cookie('mednist', first_full[1])
    return app,bob

def keep(p):
    "Send the session to review, and wait until it is there"
    assert p.post('/review/keep').status_code==302
    end = time.monotonic()+60
    while 'On the way' in p.get('/').text and time.monotonic()<end: time.sleep(.05)
    assert 'In the store for review' in p.get('/').text

def go(p, path):
    "Follow redirects to a page"
    r = p.get(path)
    while r.status_code==302: r = p.get(r.headers['Location'])
    return r

def form(html): return re.search(r'action="/review/([0-9a-f]{64})"', html)[1],int(re.search(r'name="expected" value="(\d+)"', html)[1])

def test_sign_in(app):
    p = Person(app)
    for name,word in (('ann','wrong password'),('nobody','correct horse 1'),('','' ),("ann' OR '1'='1","x"),('a'*500,'b'*5000)):
        r = p.sign_in(name, word)
        assert r.status_code==401 and 'go together' in r.text
    assert p.get('/me').status_code==302
    before = p.client.get_cookie('mednist').value
    assert p.sign_in('ann', WORDS['ann'], next='/admin/').headers['Location']=='/admin/'
    assert p.client.get_cookie('mednist').value!=before and p.get('/admin/').status_code==200
    for evil in ('https://elsewhere.example','//elsewhere.example','/\t/elsewhere.example'): assert Person(app).sign_in('bob', WORDS['bob'], next=evil).headers['Location']=='/'
    p.post('/sign-out')
    assert p.get('/admin/').status_code==302

def test_signing_out_ends_every_copy_of_the_cookie(app):
    bob = signed_in(app, 'bob')
    copy = app.test_client()
    copy.set_cookie('mednist', bob.client.get_cookie('mednist').value)
    assert copy.get('/me').status_code==200
    bob.post('/sign-out')
    assert bob.get('/me').status_code==302 and copy.get('/me').status_code==302
    bob = signed_in(app, 'bob')
    (seat,) = (app.extensions['mednist'].settings.data/'seats').iterdir()
    os.utime(seat, (0,0)) # and so does staying away
    end_seats(app.extensions['mednist'].settings)
    assert bob.get('/me').status_code==302

def test_the_next_person_at_the_screen_sees_nothing(app):
    "Images are of whoever signed in with them: not of the next one, nor of who left a session in the browser and kept a copy of its cookie"
    stranger = Person(app)
    stranger.sort(('first.png', picture(1)))
    here = Person(app)
    here.client.set_cookie('mednist', stranger.client.get_cookie('mednist').value)
    here.sign_in('bob', WORDS['bob'])
    here.sort(('of-a-patient.png', picture(2)))
    assert 'of-a-patient.png' in here.get('/').text and 'of-a-patient.png' not in stranger.get('/').text and stranger.get('/file/2/').status_code==404 and stranger.get('/download').status_code==410
    here.post('/sign-out')
    assert 'of-a-patient.png' not in here.get('/').text and here.get('/file/2/image.png').status_code==404
    here.sign_in('ann', WORDS['ann'])
    assert 'of-a-patient.png' not in here.get('/').text
    here.post('/sign-out')
    here.sign_in('bob', WORDS['bob'])
    assert 'of-a-patient.png' in here.get('/').text # and nothing was lost
    later = signed_in(app, 'cat') # signed in first
    later.sort(('of-cat.png', picture(3)))
    later.post('/sign-out')
    assert 'of-cat.png' not in later.get('/').text

def test_a_ward_behind_one_address_is_many_people(site):
    app = site(limits='12/minute')
    ann,bob = signed_in(app, 'ann'),signed_in(app, 'bob')
    assert [ann.get('/me').status_code for _ in range(14)][-1]==429 and bob.get('/me').status_code==200

def test_people_beside_no_session(app): assert signed_in(app, 'bob').get('/file/1/people').status_code==404

def test_guessing_is_slowed(site):
    app = site(sign_in_limit='3/minute')
    p = Person(app)
    assert [p.sign_in('ann', f'guess number {i}').status_code for i in range(5)]==[401]*3+[429]*2
    far = Person(app, environ_base={'REMOTE_ADDR':'192.0.2.9'}) # nor from elsewhere: the name is counted, too
    assert far.sign_in('ann', WORDS['ann']).status_code==429 and far.sign_in('bob', WORDS['bob']).status_code==302

def test_who_may_do_what(app):
    for name,codes in (('cat',(403,403)),('bob',(200,403)),('ann',(200,200))):
        p = signed_in(app, name)
        assert (go(p, '/review/').status_code,p.get('/admin/').status_code)==codes
        assert ('Review' in p.get('/').text)==(codes[0]==200)
        assert p.post('/admin/user', dict(name='eve', role='admin', password='a new password')).status_code==(302 if name=='ann' else 403)
    anon = Person(app)
    for path in ('/review/','/admin/','/me','/review/export.csv',f'/review/{"0"*64}/image.png'): assert anon.get(path).status_code==302

def test_passwords(app, store):
    with Store(store) as s:
        with s.read() as con: hashes = [o[0] for o in con.exec_driver_sql('SELECT password_hash FROM users').fetchall()]
    assert all(h.startswith('$argon2id$') for h in hashes)
    p,elsewhere = signed_in(app, 'cat'),signed_in(app, 'cat')
    token = make_token('x', app.extensions['mednist'].store, 'cat')
    assert p.post('/me/password', dict(old='wrong', new='another password')).status_code==400
    for bad in ('short','aaaaaaaaaaaa','my name is cat'): assert p.post('/me/password', dict(old=WORDS['cat'], new=bad)).status_code==400
    assert p.post('/me/password', dict(old=WORDS['cat'], new='another pass phrase')).status_code==200
    assert p.get('/me').status_code==200 and elsewhere.get('/me').status_code==302 # every other browser is signed out
    assert token_user('x', app.extensions['mednist'].store, token, 9) is None
    assert Person(app).sign_in('cat', 'another pass phrase').status_code==302

def test_admin(app):
    ann = signed_in(app, 'ann')
    bob = signed_in(app, 'bob')
    assert ann.post('/admin/user', dict(name='dan', role='reviewer', password='quiet river 44')).status_code==302
    assert Person(app).sign_in('dan', 'quiet river 44').status_code==302
    assert ann.post('/admin/user', dict(name='<b>eve</b>', role='reader', password='')).status_code==302
    html = ann.get('/admin/').text
    assert '<b>eve</b>' not in html and '&lt;b&gt;eve' in html
    assert ann.post('/admin/user', dict(name='ann', role='reader', password='')).status_code==400
    assert ann.post('/admin/user', dict(name='fay', role='king', password='')).status_code==400
    assert ann.post('/admin/user/remove', dict(name='bob')).status_code==302
    assert bob.get('/review/').status_code==302 # at once, not only when the cookie ends
    assert ann.post('/admin/user/remove', dict(name='ann')).status_code==400
    assert open_learner().labels[0] in html and 'without a home' in html and ann.post('/admin/retrain', dict(verb='retrain')).status_code==400

def test_review(full):
    app,bob = full
    store = app.extensions['mednist'].store
    html = go(bob, '/review/?order=uncertain').text
    digest,version = form(html)
    assert digest==store.find(status='none', uncertain=True).digest[0] and version==0 and 'Looked at: 0 of 24' in html
    said = store.find().set_index('digest').predicted[digest]
    r = bob.post(f'/review/{digest}', dict(order='uncertain', label=said, status='label', expected=0))
    assert r.status_code==302 and digest not in r.headers['Location'].split('?')[0]
    nxt = go(bob, r.headers['Location']).text
    assert 'Looked at: 1 of 24' in nxt and f'/review/{digest}/undo' in nxt
    assert store.history(digest).status.tolist()==['validated']
    other = next(o for o in open_learner().labels if o!=said)
    d2,_ = form(nxt)
    said2 = store.find().set_index('digest').predicted[d2]
    bob.post(f'/review/{d2}', dict(order='uncertain', label=next(o for o in open_learner().labels if o!=said2), status='label', expected=0))
    assert store.history(d2).status.tolist()==['corrected']
    assert digest not in [form(go(bob, '/review/').text)[0]]
    assert form(go(bob, '/review/?order=disagree').text)[0]==d2
    bob.post(f'/review/{digest}/undo')
    assert store.history(digest).status.tolist()==['validated','withdrawn']
    d3 = form(go(bob, '/review/?order=new').text)[0]
    bob.post(f'/review/{d3}', dict(status='unsure', expected=0, order='new'))
    assert store.find(status='unsure').digest.tolist()==[d3]
    csv = bob.get('/review/export.csv').text
    assert d2 in csv and csv.splitlines()[0].startswith('"digest","label"')

@pytest.mark.parametrize('bad', [dict(label='nonsense', status='label', expected=0), dict(label="'; DROP TABLE labels; --", status='label', expected=0), dict(status='label', expected=0), dict(label='CXR', status='validated', expected=0), dict(label='CXR', status='label')])
def test_answers_that_make_no_sense(full, bad):
    app,bob = full
    store = app.extensions['mednist'].store
    d = store.find().digest[0]
    assert bob.post(f'/review/{d}', bad).status_code==400 and len(store.history(d))==0

def test_unknown_images(full):
    _,bob = full
    for d in ('0'*64,'x','..%2f..%2fkey'):
        assert bob.get(f'/review/{d}').status_code==404 and bob.get(f'/review/{d}/image.png').status_code==404 and bob.post(f'/review/{d}', dict(status='unsure', expected=0)).status_code==404

def test_two_reviewers_at_once(full):
    "Both saw the same; the second is told what the first said, and nothing is overwritten"
    app,bob = full
    ann = signed_in(app, 'ann')
    digest,version = form(go(bob, '/review/').text)
    assert form(go(ann, '/review/').text)==(digest,version)
    bob.post(f'/review/{digest}', dict(label='CXR', status='label', expected=version))
    r = ann.post(f'/review/{digest}', dict(label='Hand', status='label', expected=version))
    assert r.status_code==409 and 'Somebody else answered meanwhile' in r.text and '<bdi>bob</bdi>' in r.text and form(r.text)==(digest,1)
    assert ann.post(f'/review/{digest}/undo').status_code==409 # bob's answer is not hers to take back
    ann.post(f'/review/{digest}', dict(label='Hand', status='label', expected=1))
    h = app.extensions['mednist'].store.history(digest)
    assert h.by.tolist()==['bob','ann'] and h.label.tolist()==['CXR','Hand']

def test_many_answers_at_the_same_moment(full):
    "Of those that saw the same version, one is kept"
    app,_ = full
    store = app.extensions['mednist'].store
    d,people = store.find().digest[0],[signed_in(app, n) for n in ('ann','bob') for _ in range(3)]
    tokens = [p.token() for p in people]
    gate,codes = threading.Barrier(len(people)),[]
    def one(p, t):
        gate.wait()
        codes.append(p.client.post(f'/review/{d}', data=dict(csrf_token=t, label='CXR', status='label', expected=0)).status_code)
    threads = [threading.Thread(target=one, args=o) for o in zip(people, tokens)]
    for t in threads: t.start()
    for t in threads: t.join()
    assert sorted(codes)==[302]+[409]*5 and len(store.history(d))==1

class Reviewer:
    "Answers and comments as fast as the server takes them, and keeps what was asked and what was confirmed"
    def __init__(self, url, name, digests, seed):
        self.name,self.browser,self.digests,self.seed,self.rng,self.classes = name,Browser(url),digests,seed,random.Random(seed),open_learner().labels
        self.version = dict.fromkeys(digests, 0) # as far as this reviewer knows
        self.asked,self.confirmed,self.texts,self.done_texts,self.strange = set(),set(),[],[],[]
        self.token = self.browser.token()
        assert self.browser.post('/sign-in', csrf_token=self.token, name=name, password=WORDS[name])[0]==302
        self.token = self.browser.token()

    def post(self, path, **data):
        "Status and text, or None and '' where no answer came"
        try: return self.browser.post(path, csrf_token=self.token, **data)
        except (OSError,HTTPException): time.sleep(.02); return None,''

    def answer(self):
        d = self.rng.choice(self.digests)
        said = d,self.version[d]+1,self.name,self.rng.choice(self.classes)
        self.asked.add(said)
        code,html = self.post(f'/review/{d}', label=said[-1], status='label', expected=said[1]-1)
        if code==302: self.confirmed.add(said); self.version[d] += 1
        elif code==409: self.version[d] = form(html)[1]
        elif code is not None: self.strange.append((code,html[:300]))

    def comment(self):
        self.texts.append(text := f'{self.seed} says {len(self.texts)}')
        code,html = self.post(f'/review/{self.rng.choice(self.digests)}/comment', text=text)
        if code==302: self.done_texts.append(text)
        elif code is not None: self.strange.append((code,html[:300]))

    def work(self, ended):
        while not ended.is_set(): self.comment() if self.rng.random()<.3 else self.answer()

def test_killed_while_people_review(tmp_path, store, phantoms, serve):
    "What was confirmed is there once; nothing is half there; the cookies go on. MEDNIST_FASTAI_FAULTS=full kills more often"
    with Store(store) as s: digests = s.add_images(sorted(phantoms.glob('*/*.png')), 'ann')
    kills,port,rng,ended = 15 if os.environ.get('MEDNIST_FASTAI_FAULTS')=='full' else 3,free_port(),random.Random(0),threading.Event()
    server = serve(tmp_path/'data', store=str(store), port=port)
    people = [Reviewer(server.url, n, digests, i) for i,n in enumerate(('ann','bob','bob'))]
    threads = [threading.Thread(target=p.work, args=(ended,)) for p in people]
    for t in threads: t.start()
    def confirmed(): return [len(p.confirmed)+len(p.done_texts) for p in people]
    def all_go_on(): # nobody signed in again
        before,end = confirmed(),time.monotonic()+60
        while not all(b>a for a,b in zip(before, confirmed())):
            assert time.monotonic()<end, [p.strange for p in people]
            time.sleep(.01)
    try:
        for _ in range(kills):
            all_go_on()
            time.sleep(rng.uniform(.2, 1))
            server.stop(signal.SIGKILL)
            server = serve(tmp_path/'data', store=str(store), port=port)
        all_go_on()
    finally:
        ended.set()
        for t in threads: t.join(60)
    assert not any(p.strange for p in people)
    assert server.stop()==0
    check_reviews(store, people)

def check_reviews(store, people):
    "Hold what is in the store against what was asked and confirmed"
    r = subprocess.run([str(Path(sys.executable).with_name('mednist-store')), 'check', str(store)], capture_output=True, text=True)
    assert r.returncode==0, r.stdout+r.stderr
    with Store(store) as s:
        rows = s.frame(sa.select(images.c.digest, labels.c.version, users.c.name, labels.c.label).select_from(labels.join(images).join(users)))
        texts = Counter(s.frame(sa.select(comments.c.text)).text)
        trail = Counter(s.frame(sa.select(audits.c.action)).action)
    there,asked,sure = Counter(map(tuple, rows.values.tolist())),set().union(*(p.asked for p in people)),set().union(*(p.confirmed for p in people))
    assert set(there.values())=={1} and sure<=set(there)<=asked and len(sure)==sum(len(p.confirmed) for p in people)
    for _,g in rows.groupby('digest'): assert sorted(g.version)==[*range(1, len(g)+1)] # a history without holes
    assert set(texts.values())=={1} and set(o for p in people for o in p.done_texts)<=set(texts)<=set(o for p in people for o in p.texts)
    assert trail['add label']==len(rows) and trail['add comment']==len(texts) # a step and its trail are one
    print(f'{len(sure)} answers and {sum(len(p.done_texts) for p in people)} comments confirmed; {len(there)-len(sure)} and {len(texts)-sum(len(p.done_texts) for p in people)} more came in unconfirmed')

def test_comments_are_only_text(full):
    app,bob = full
    store = app.extensions['mednist'].store
    d = store.find().digest[0]
    for text in ('<script>alert(1)</script>',"'); DELETE FROM comments; --",'{{7*7}}'): assert bob.post(f'/review/{d}/comment', dict(text=text)).status_code==302
    html = bob.get(f'/review/{d}').text
    assert '<script>alert' not in html and '&lt;script&gt;' in html and '{{7*7}}' in html and 'DELETE FROM' in html and '>49<' not in html
    assert bob.post(f'/review/{d}/comment', dict(text='  ')).status_code==400 and bob.post(f'/review/{d}/comment', dict(text='x'*10_001)).status_code==400
    n = int(re.search(r'/comment/(\d+)/remove', html)[1])
    ann = signed_in(app, 'ann')
    assert ann.post(f'/review/{d}/comment', dict(text='mine')).status_code==302
    mine = max(int(o) for o in re.findall(r'/comment/(\d+)/remove', ann.get(f'/review/{d}').text))
    assert bob.post(f'/review/{d}/comment/{mine}/remove').status_code==403
    assert bob.post(f'/review/{d}/comment/{n}/remove').status_code==302 and '&lt;script&gt;' not in bob.get(f'/review/{d}').text

def test_what_people_said_beside_a_session(full):
    app,bob = full
    store = app.extensions['mednist'].store
    assert 'Nobody has said anything' in bob.get('/file/1/people').text
    digest = re.search('[0-9a-f]{64}', (next(app.extensions['mednist'].runs.sessions.iterdir())/'views/0000001-digest').read_text())[0]
    store.add_label(digest, 'CXR', 'ann', 'corrected')
    assert 'corrected' in bob.get('/file/1/people').text
    assert Person(app).get('/file/1/people').status_code==404

def test_nothing_that_tells_a_name_goes_into_the_store(full):
    app,bob = full
    bob.sort(('of-somebody.png', picture(77, 64)))
    keep(bob)
    store = app.extensions['mednist'].store
    assert store.count(__import__('mednist_fastai.store').store.images)==25
    with store.read() as con: assert 'of-somebody' not in str(con.exec_driver_sql('SELECT * FROM images').fetchall())
    assert store.check()==[]

def test_labels_by_api(full):
    app,_ = full
    st,c = app.extensions['mednist'],app.test_client()
    def h(name): return {'Authorization':f'Bearer {make_token(st.secret, st.store, name)}'}
    found = c.get('/api/v1/labels?status=none&uncertain=1&limit=3', headers=h('cat')).json['results']
    assert [o['digest'] for o in found]==st.store.find(status='none', uncertain=True, limit=3).digest.tolist()
    d = dict(digest=found[0]['digest'], label='CXR', status='corrected', expected=0)
    assert c.post('/api/v1/labels', json=d, headers=h('cat')).status_code==403
    assert c.post('/api/v1/labels', json=d, headers=h('bob')).json=={'version':1}
    r = c.post('/api/v1/labels', json=d, headers=h('bob'))
    assert r.status_code==409 and 'bob said' in r.json['error']
    for bad in ({}, [], dict(d, label='nonsense', expected=1), dict(d, digest=7), dict(d, status='nonsense', expected=1), dict(d, label='', expected=1)): assert c.post('/api/v1/labels', json=bad, headers=h('bob')).status_code==400
    assert c.post('/api/v1/labels', json=dict(d, digest='0'*64), headers=h('bob')).status_code==404
    assert c.get('/api/v1/labels?limit=0', headers=h('bob')).status_code==400

def test_similar_images(site, phantoms, tmp_path):
    pytest.importorskip('faiss', reason="similar images need the extra 'search'")
    from mednist_fastai.search import SearchIndex
    SearchIndex.create(tmp_path/'index').index(phantoms)
    app = site(index=tmp_path/'index')
    bob = signed_in(app, 'bob')
    bob.sort(('q.png', next((phantoms/'Hand').glob('*.png')).read_bytes()))
    html = bob.get('/file/1/similar').text
    assert html.count('<li>')==8 and '<span>Hand</span>' in html and str(phantoms) not in html
    url = re.search(r'/indexed/[0-9a-f]{64}\.png', html)[0]
    assert bob.get(url).content_type=='image/png' and Person(app).get(url).status_code==404 and bob.get('/indexed/'+'0'*64+'.png').status_code==404
    st = app.extensions['mednist']
    h = {'Authorization':f'Bearer {make_token(st.secret, st.store, "cat")}'}
    c = app.test_client()
    def ask(b=picture(5), **kw): return c.post('/api/v1/similar', data=dict(file=(io.BytesIO(b), 'x.png'), **kw), headers=h)
    r = ask(k=3).json['results']
    assert len(r)==3 and set(r[0])=={'label','similarity','digest'} and r[0]['similarity']>=r[-1]['similarity']
    bad = ask(b'')
    assert bad.status_code==422 and str(tmp_path) not in bad.text and ask(k=0).status_code==400

def test_a_reviewer_of_findings(site, tmp_path):
    from test_sort_multilabel import draw, make_learner
    for i,(l,r) in enumerate([(0,0),(220,0),(220,220)]): draw(tmp_path/f'{i}.png', l, r, i)
    app = site(learner=make_learner(tmp_path/'halves'))
    bob = signed_in(app, 'bob')
    bob.sort(*[(f'{i}.png', (tmp_path/f'{i}.png').read_bytes()) for i in range(3)])
    keep(bob)
    store = app.extensions['mednist'].store
    by = store.find().set_index('predicted').digest
    assert '' in by and 'Left|Right' in [o for o in by.index if o.startswith('Left|Right')][0]
    html = bob.get(f'/review/{by[""]}').text
    assert html.count('type="checkbox"')==3 and 'checked' not in html
    bob.post(f'/review/{by[""]}', dict(status='label', expected=0)) # none is an answer, too
    d = by['Left'] if 'Left' in by else by[[o for o in by.index if o][0]]
    bob.post(f'/review/{d}', dict(label=['Right','Left'], status='label', expected=0))
    assert store.history(by['']).status.tolist()==['validated'] and store.history(d).label.tolist()==['Left|Right']

def test_the_home_of_learners(site, tmp_path):
    "A retraining that can't be done is told; the learner that is current sorts"
    from test_web_learners import Home
    home = Home(tmp_path/'home')
    app = site(home=home.at, learner=home.at)
    ann = signed_in(app, 'ann')
    assert ann.post('/admin/retrain', dict(verb='rollback')).status_code==302
    st,end = app.extensions['mednist'],time.monotonic()+90
    while st.retraining.running() and time.monotonic()<end: time.sleep(.2)
    html = ann.get('/admin/').text
    assert 'nothing was promoted' in html and 'failed: the old learner' in html and 'begin' in html
    before = st.runs.learner.path
    home.use(1)
    st.runs.reopen()
    assert st.runs.learner.path!=before and st.runs.learner.labels
    p = Person(app)
    p.sort(('a.png', picture(1)))
    assert ann.post('/admin/retrain', dict(verb='promote', learner='../../x')).status_code==404

def test_a_verdict_is_told_when_it_is_in_force(site, tmp_path, monkeypatch):
    "Not before the server has opened the learner, and as a failure where it can't"
    app = site(home=tmp_path/'no home')
    st,ann,gate = app.extensions['mednist'],signed_in(app, 'ann'),threading.Event()
    def fails(): gate.wait(30); raise OSError('damaged')
    monkeypatch.setattr(st.runs, 'reopen', fails)
    monkeypatch.setattr('mednist_fastai.web.retraining._RUN', 'print("current: 0001")')
    ann.post('/admin/retrain', dict(verb='rollback'))
    end = time.monotonic()+30
    while 'current: 0001' not in st.retraining.last()[0] and time.monotonic()<end: time.sleep(.05)
    time.sleep(.3) # the process has ended
    html = ann.get('/admin/retraining')
    assert 'running' in html.text and 'HX-Refresh' not in html.headers and ann.post('/admin/retrain', dict(verb='retrain')).status_code==409
    gate.set()
    while st.retraining.running() and time.monotonic()<end: time.sleep(.05)
    html = ann.get('/admin/retraining')
    assert 'failed: the old learner' in html.text and 'could not open the learner' in html.text and html.headers['HX-Refresh']=='true'
