"""The page: what people upload is sorted, shown to them alone, and handed back whole; what is hostile gets nowhere.

`MEDNIST_FASTAI_LOAD=full` makes the load test as large as it is meant to be: 20 people with 50 images each, as `benchmarks/web.py` measures it."""
import hashlib, io, json, os, re, shutil, signal, socket, sqlite3, stat, subprocess, sys, threading, time, zipfile
from concurrent.futures import ThreadPoolExecutor
from html import unescape
from pathlib import Path
import numpy as np
import pytest
from PIL import Image
from mednist_fastai.infer import Predictor
from mednist_fastai.learner import open_learner
from mednist_fastai.sort import classify_folder, read_report
from mednist_fastai.web import create_app
from mednist_fastai.web.batches import Batches, Cancelled, Person as Shared
from mednist_fastai.web.box import Box, take
from mednist_fastai.web.settings import SECRET_ENV, Settings, WebError, server_secret
from person import Browser, Person, crowd, picture, zipped

@pytest.fixture(scope='module')
def phantoms(tmp_path_factory):
    "Class -> bytes of synthetic images"
    from mednist_fastai.phantom import make_phantoms
    df = make_phantoms(tmp_path_factory.mktemp('phantoms'), n=4)
    return {c:[Path(o).read_bytes() for o in g.path] for c,g in df.groupby('label')}

@pytest.fixture
def app(site): return site()

@pytest.fixture
def ann(app): return Person(app)

def shown(html): return [unescape(o) for o in re.findall(r'class="name">.*?<bdi>(.*?)</bdi>', html, re.S)]
def on_disk(data): return sorted(p.relative_to(data).as_posix() for p in (Path(data)/'sessions').rglob('*') if p.is_file() and not p.name.startswith('files.sqlite') and p.name!='used')

# The way

def test_images_come_back_sorted(ann, phantoms, tmp_path):
    files = [(f'{c}-{i}.png', b) for c,g in phantoms.items() for i,b in enumerate(g)]
    html = ann.sort(*files, ('empty.png', b''), ('note.txt', b'no image at all'))
    (tmp_path/'in').mkdir()
    for n,b in files: (tmp_path/'in'/n).write_bytes(b)
    want = classify_folder(tmp_path/'in', tmp_path/'out', progress=False, device='cpu') # the page is no other way
    z = ann.zip()
    (tmp_path/'report.csv').write_bytes(z.read('report.csv'))
    got = read_report(tmp_path/'report.csv')
    assert sorted(got.path)==sorted([n for n,_ in files]+['empty.png','note.txt'])
    both = want.assign(path=[Path(o).name for o in want.path]).merge(got, on='path', suffixes=('','_page'))
    assert len(both)==len(files)
    for k in ('label','status','second','doubts'): assert both[k].tolist()==both[f'{k}_page'].tolist()
    probs = [o for o in want if o.startswith('p_')]
    np.testing.assert_allclose(both[probs], both[[f'{o}_page' for o in probs]], atol=1e-5) # a batch of another size rounds otherwise
    given = dict(files)
    for r in got[got.destination!=''].itertuples():
        assert z.read(r.destination)==given[r.path] and r.destination.split('/')[0] in (r.label,'_review')
    assert set(got[got.status=='unreadable'].path)=={'empty.png','note.txt'} and all(got[got.status=='unreadable'].error)
    assert sorted(z.namelist())==sorted([*got.destination[got.destination!=''],'report.csv'])
    assert 'empty: 0 bytes' in html and shown(html)[:2]==['empty.png','note.txt'] # what was not read comes first

def test_in_both_languages(app, ann):
    for accept,words in (('en','Drop images'),('fr-CH, fr;q=0.9','Déposez ici'),('de','Drop images')):
        html = Person(app, headers={'Accept-Language':accept}).get('/').text
        assert words in html and ('Research software, not a medical device' in html or 'pas un dispositif médical' in html)
    assert ann.post('/language', dict(language='fr', back='/api/v1/')).headers['Location']=='/api/v1/'
    assert '<html lang="fr">' in ann.get('/').text
    for evil in ('https://elsewhere.example','//elsewhere.example','/\\elsewhere.example','/\t/elsewhere.example','/\r\n/elsewhere.example','javascript:alert(1)'):
        assert ann.post('/language', dict(language='en', back=evil)).headers['Location']=='/'
    fr = Person(app, headers={'Accept-Language':'fr'})
    assert 'vide : 0 octet' in fr.sort(('rien.png', b'')) and 'illisible' in fr.get('/').text

def test_more_files_are_added_to_the_same_session(ann, phantoms):
    for c,g in phantoms.items(): html = ann.sort((f'{c}.png', g[0]))
    assert set(shown(html))=={f'{c}.png' for c in phantoms} and len(ann.zip().namelist())==len(phantoms)+1

def test_three_hundred_at_once(app, ann):
    names = [f'series/{i//100}/im{i%100:03}.png' for i in range(300)]
    r = ann.post('/upload', dict(names=names), files=[('x', picture(i)) for i in range(300)])
    assert r.status_code==302
    html = ann.wait()
    assert '300 files' in html and 'Page 1 of 5' in html
    seen = [n for k in range(1, 6) for n in shown(ann.get(f'/?page={k}').text)]
    assert sorted(seen)==names
    z = ann.zip()
    assert sorted(hashlib.sha256(z.read(o)).hexdigest() for o in z.namelist() if o!='report.csv')==sorted(hashlib.sha256(picture(i)).hexdigest() for i in range(300))

def test_nobody_sees_another_session(app, ann, phantoms):
    bob = Person(app)
    ann.sort(('of-ann.png', phantoms['CXR'][0]))
    assert 'of-ann' not in bob.get('/').text
    for path in ('/file/1/','/file/1/thumb.png','/file/1/image.png','/file/1/cam.png'): assert bob.get(path).status_code==404
    assert bob.get('/download').status_code==410
    bob.sort(('of-bob.png', phantoms['Hand'][0]))
    assert bob.get('/file/1/image.png').data!=ann.get('/file/1/image.png').data
    bob.post('/clear')
    assert bob.get('/file/1/').status_code==404 and ann.get('/file/1/').status_code==200 and len(ann.zip().namelist())==2

def test_clear_removes_everything_and_age_does(app, ann, phantoms):
    st = app.extensions['mednist']
    ann.sort(('a.png', phantoms['CXR'][0]))
    (old,) = st.runs.sessions.iterdir()
    assert st.runs.sweep()==0
    os.utime(old/'used', (0,0))
    assert st.runs.sweep()==1 and not old.exists() and not any(st.runs.trash.iterdir())
    assert ann.get('/').status_code==200 and ann.get('/download').status_code==410
    ann.sort(('b.png', phantoms['CXR'][1]))
    (new,) = st.runs.sessions.iterdir()
    ann.post('/clear')
    assert not new.exists()

# What is hostile

EVIL = ['<script>alert(1)</script>.png', '"><img src=x onerror=alert(1)>.png', "'; DROP TABLE file; --.png", '../../../../etc/passwd', '..\\..\\windows\\win.ini', '/etc/shadow', '=cmd|calc!A0.png',
        'a\u202egnp.exe', 'CON.png', '.htaccess', 'C:\\x.png', '{{7*7}}${7*7}.png', '%2e%2e%2fx.png', 'é’😀.png', 'x'*300+'.png', 'report.csv']

def test_hostile_names_are_only_text(app, ann, tmp_path):
    html = ann.post('/upload', dict(names=EVIL), files=[('x', picture(i)) for i in range(len(EVIL))]) and ann.wait()
    assert '<script>alert' not in html and '<img src=x' not in html and '49' not in ''.join(shown(html))
    assert sorted(shown(html))==sorted(EVIL) # all there, as they were given
    for i,_ in enumerate(EVIL): assert '<script>alert' not in ann.get(f'/file/{i+1}/').text
    z = ann.zip()
    for n in z.namelist():
        parts = n.split('/')
        assert len(parts)<=2 and '..' not in parts and not any(c in n for c in '\\:<>"|?*') and not parts[-1].startswith('.') and len(parts[-1].encode())<=255
    assert len(z.namelist())==len(set(o.casefold() for o in z.namelist()))==len(EVIL)+1
    (tmp_path/'report.csv').write_bytes(z.read('report.csv'))
    assert sorted(read_report(tmp_path/'report.csv').path)==sorted(EVIL)
    assert "'=cmd" in z.read('report.csv').decode() # no spreadsheet takes it for a formula
    data = app.extensions['mednist'].settings.data
    assert all(re.fullmatch(r'sessions/[0-9a-f]{32}/(files/\d{7}|sorted/[\w.-]+/.*|sorted/\S+|views/\S+)', o) for o in on_disk(data))
    assert ann.get('/').status_code==200

def test_a_zip_is_unpacked_and_what_is_wrong_in_it_is_listed(ann, phantoms):
    out = io.BytesIO()
    with zipfile.ZipFile(out, 'w') as z:
        z.writestr('a/one.png', phantoms['CXR'][0])
        z.writestr('b/one.png', phantoms['Hand'][0])
        z.writestr('../../out.png', phantoms['Hand'][1])
        z.writestr('/abs.png', phantoms['Hand'][1])
        link = zipfile.ZipInfo('link.png'); link.external_attr = (stat.S_IFLNK|0o777)<<16
        z.writestr(link, '/etc/passwd')
        z.writestr('inner.zip', zipped(x=b'1'))
        z.writestr('lzma.png', phantoms['Hand'][1], zipfile.ZIP_LZMA)
        z.writestr('folder/', '')
    html = ann.sort(('set.zip', out.getvalue()), ('broken.zip', out.getvalue()[:200]), ('empty.zip', zipped()))
    assert sorted(shown(html))==sorted(['set.zip/a/one.png','set.zip/b/one.png','set.zip/../../out.png','set.zip//abs.png','set.zip/link.png','set.zip/inner.zip','set.zip/lzma.png','broken.zip','empty.zip'])
    for o in ('a link in a ZIP','leads out of the ZIP','a ZIP in a ZIP','compressed in a way','a damaged ZIP','an empty ZIP'): assert o in html
    names = ann.zip().namelist()
    assert sorted(o.split('/')[1] for o in names if '/' in o)==['one.png','one.png'] # in two folders

@pytest.mark.parametrize('bomb', ['ratio','total','count','directory'])
def test_bombs_cost_little_and_leave_nothing(site, phantoms, bomb):
    app = site(max_files=50, max_bytes=30*2**20, max_ratio=100)
    p = Person(app)
    blob = dict(ratio=lambda: zipped(**{'a.png':bytes(20*2**20), 'b.png':phantoms['CXR'][0]}), total=lambda: zipped(**{f'{i}.png':bytes(9*2**20) for i in range(5)}),
        count=lambda: zipped(**{f'{i}.png':b'' for i in range(60)}), directory=lambda: zipped(**{f'{i:0200}':b'' for i in range(3000)}))[bomb]()
    t = time.monotonic()
    r = p.upload(('ok.png', phantoms['CXR'][1]), ('bomb.zip', blob))
    assert time.monotonic()-t<10
    if bomb=='ratio': # one bad member costs itself alone
        assert r.status_code==302 and 'a ZIP bomb' in p.wait()
    else:
        assert r.status_code==413 and 'Nothing of this upload was kept' in r.text
        assert on_disk(app.extensions['mednist'].settings.data)==[]

def test_limits(site, phantoms):
    app = site(max_files=3, max_request=200_000)
    p = Person(app)
    p.sort(*[(f'{i}.png', picture(i)) for i in range(3)])
    before = on_disk(app.extensions['mednist'].settings.data)
    r = p.upload(('one-more.png', picture(9)))
    assert r.status_code==413 and 'More files than a session may have' in r.text and on_disk(app.extensions['mednist'].settings.data)==before
    assert p.upload(('big.png', bytes(300_000))).status_code==413
    full = site(data=Path(app.extensions['mednist'].settings.data).parent/'other', spare=2**60)
    assert Person(full).upload(('a.png', picture(1))).status_code==507
    r = p.post('/upload')
    assert r.status_code==400 and 'Traceback' not in r.text

def test_the_disk_stays_free_while_a_zip_grows(site, monkeypatch):
    "What was sent fits, what it grows to doesn't"
    app = site(spare=1000)
    p,free = Person(app),[2**40]
    def usage(_): free[0] -= 2**39; return shutil._ntuple_diskusage(2**40, 0, max(0, free[0]))
    monkeypatch.setattr(shutil, 'disk_usage', usage)
    r = p.upload(('a.zip', zipped(**{f'{i}.png':bytes(2**20) for i in range(9)})))
    assert r.status_code==507 and not any(app.extensions['mednist'].runs.sessions.iterdir())
    free[0] = 2**41
    p.sort(('a.png', picture(1)))
    free[0] = 2**39
    assert p.get('/download').status_code==507

def test_a_session_that_is_cleared_while_it_is_asked_for(app, ann, monkeypatch):
    ann.sort(('a.png', picture(1)))
    real = Box.touch
    def gone(self): shutil.rmtree(self.root); real(self)
    monkeypatch.setattr(Box, 'touch', gone)
    assert ann.get('/').status_code==200 and ann.get('/download').status_code==410

def test_no_path_of_the_server_is_told(site, ann, app, monkeypatch):
    from mednist_fastai.learner import LearnerError
    from mednist_fastai.sort import SortError
    for kind in (lambda at: SortError(f'cannot write to {at}/sorted: no room; nothing is lost'), lambda at: LearnerError(at, 'damaged')):
        def fails(src, dst, *a, **kw): raise kind(Path(dst).parent.parent)
        monkeypatch.setattr('mednist_fastai.web.runs.classify_folder', fails)
        html = ann.sort(('a.png', picture(1)))
        assert 'Sorting stopped' in html and str(app.extensions['mednist'].settings.data) not in html

def test_too_many_pixels_are_listed(ann):
    import struct, zlib
    def chunk(k, b): return struct.pack('>I', len(b))+k+b+struct.pack('>I', zlib.crc32(k+b))
    huge = b'\x89PNG\r\n\x1a\n'+chunk(b'IHDR', struct.pack('>IIBBBBB', 60000, 60000, 8, 0, 0, 0, 0))+chunk(b'IDAT', zlib.compress(bytes(1000)))+chunk(b'IEND', b'')
    assert '60000 x 60000 pixels' in ann.sort(('huge.png', huge))

def test_headers_and_no_inline_code(app, ann, phantoms):
    ann.sort(('a.png', phantoms['CXR'][0]))
    for path in ('/','/file/1/','/api/v1/','/nothing','/static/page.js'):
        r = ann.get(path)
        csp = r.headers['Content-Security-Policy']
        assert "default-src 'none'" in csp and 'unsafe' not in csp and r.headers['X-Content-Type-Options']=='nosniff' and r.headers['X-Frame-Options']=='DENY'
        if 'html' in r.content_type:
            assert not re.search(r'<script(?![^>]*src=)|<style|\sstyle=|\son\w+=|javascript:', r.text) and not re.search(r'(src|href|action)="https?://(?!localhost)', r.text)
    cookie = ann.get('/').headers.get('Set-Cookie') or Person(app).get('/').headers['Set-Cookie']
    assert 'HttpOnly' in cookie and 'SameSite=Lax' in cookie

def test_forms_of_other_sites_are_refused(app, ann):
    for path in ('/upload','/clear','/language','/again'): assert app.test_client().post(path).status_code==400
    assert ann.client.post('/clear', data=dict(csrf_token='made up')).status_code==400

def test_other_host_names_are_refused(ann):
    assert ann.client.get('/', headers={'Host':'elsewhere.example'}).status_code==400 # a page that renames itself to this machine

def test_no_trace_reaches_the_browser(site, monkeypatch, caplog):
    app = site()
    @app.get('/fails')
    def fails(): raise RuntimeError('secret-detail at /srv/path')
    for path in ('/fails',):
        r = app.test_client().get(path)
        assert r.status_code==500 and 'secret-detail' not in r.text and 'Traceback' not in r.text and re.search('[0-9a-f]{8}', r.text)
    assert 'secret-detail' in caplog.text # whoever runs it finds it

def test_a_cookie_that_was_changed_opens_nothing(app, ann, phantoms):
    ann.sort(('a.png', phantoms['CXR'][0]))
    bob = app.test_client()
    value = ann.client.get_cookie('mednist').value
    bob.set_cookie('mednist', value[:-4]+'AAAA')
    assert bob.get('/download').status_code==410
    for sid in ('..','../..','/etc','0'*31+'/','A'*32): assert Box.open(app.extensions['mednist'].settings, sid) is None

def test_rates_are_limited(site):
    app = site(limits='5/minute')
    codes = [app.test_client().get('/').status_code for _ in range(8)]
    assert codes[:5]==[200]*5 and codes[-1]==429

# Start

def test_refuses_to_start_unsafely(tmp_path, monkeypatch):
    monkeypatch.delenv(SECRET_ENV, raising=False)
    for kw in (dict(host='0.0.0.0'), dict(host='192.0.2.1'), dict(host='0.0.0.0', secret='changeme'), dict(host='0.0.0.0', secret='a'*64)):
        with pytest.raises(WebError, match=SECRET_ENV): create_app(Settings(data=tmp_path/'d', **kw))
    assert len(server_secret(Settings(data=tmp_path/'d', host='0.0.0.0', secret='0123456789abcdef'*4)))==64
    a = server_secret(Settings(data=tmp_path/'d'))
    assert a==server_secret(Settings(data=tmp_path/'d')) and len(a)==64 and stat.S_IMODE((tmp_path/'d/secret').stat().st_mode)==0o600

def test_two_servers_do_not_share_a_folder(site):
    site()
    with pytest.raises(WebError, match='another server'): site()

def test_stays_light(tmp_path):
    "A server that sorts never loads the training side"
    (tmp_path/'a.png').write_bytes(picture(1))
    code = f'''
import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})
from mednist_fastai.web import create_app; from mednist_fastai.web.settings import Settings; from person import Person
app = create_app(Settings(data={str(tmp_path/"data")!r}, device='cpu', spare=0)); p = Person(app); p.sort(('a.png', open({str(tmp_path/"a.png")!r}, 'rb').read())); p.zip()
app.extensions['mednist'].close(); print([m for m in ('torch','fastai','timm','matplotlib') if m in sys.modules])'''
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout.strip()=='[]'

# One network for all

def test_batches_are_shared_and_nothing_is_mixed_up(tmp_path):
    paths = []
    for i in range(96): paths.append(tmp_path/f'{i}.png'); paths[-1].write_bytes(picture(i))
    pred = Predictor(device='cpu', precision='float32', batch_size=16)
    want = [o.probabilities for o in pred.predict(paths)]
    b = Batches(pred)
    try:
        def one(k): return [(o.path,o.probabilities) for o in Shared(b).predict(paths[k::8])]
        with ThreadPoolExecutor(8) as pool: got = list(pool.map(one, range(8)))
        for k,rows in enumerate(got):
            assert [p for p,_ in rows]==paths[k::8]
            np.testing.assert_allclose([o for _,o in rows], want[k::8], atol=1e-5)
        assert max(b.sizes)>12 # more than one person's images at once
        bad = list(Shared(b).predict([paths[0], tmp_path/'none.png', paths[1]]))
        assert [o.error is None for o in bad]==[True,False,True]
    finally: b.close()
    with pytest.raises(Cancelled): list(Shared(b).predict(paths[:1]))

def test_a_failing_engine_is_told_and_the_next_images_work(app, ann, phantoms, monkeypatch):
    pred = app.extensions['mednist'].runs.batches.predictor
    real = type(pred).predict
    monkeypatch.setattr(Predictor, 'predict', lambda self, *a, **kw: (_ for _ in ()).throw(MemoryError('no memory')))
    html = ann.sort(('a.png', phantoms['CXR'][0]))
    assert 'Sorting stopped' in html and 'no memory' not in html
    monkeypatch.setattr(Predictor, 'predict', real)
    ann.post('/again')
    assert shown(ann.wait())==['a.png']

def test_a_session_that_is_cleared_while_it_is_sorted(app, ann, monkeypatch):
    gate,real = threading.Event(),Predictor.predict
    def slow(self, *a, **kw): gate.wait(20); yield from real(self, *a, **kw)
    monkeypatch.setattr(Predictor, 'predict', slow)
    ann.upload(*[(f'{i}.png', picture(i)) for i in range(5)])
    st = app.extensions['mednist']
    (box,) = st.runs.sessions.iterdir()
    ann.post('/clear')
    gate.set()
    end = time.monotonic()+20
    while box.exists() and time.monotonic()<end: time.sleep(.05)
    assert not box.exists() and not st.runs.active

def test_files_that_come_while_others_are_sorted_have_their_turn(app, ann, monkeypatch):
    gate,real = threading.Event(),Predictor.predict
    def slow(self, *a, **kw): gate.wait(20); yield from real(self, *a, **kw)
    monkeypatch.setattr(Predictor, 'predict', slow)
    ann.upload(*[(f'a{i}.png', picture(i)) for i in range(5)])
    time.sleep(.3) # the folder was looked at
    ann.upload(*[(f'b{i}.png', picture(50+i)) for i in range(5)])
    gate.set()
    assert 'gone from the disk' not in ann.wait() and {r['status'] for r in _rows(app)}<={'sorted','review'} and len(ann.zip().namelist())==11

def test_a_file_that_vanishes_is_told(app, ann, phantoms, monkeypatch):
    real = classify_folder
    def first(src, *a, **kw): (Path(src)/'0000002').unlink(missing_ok=True); return real(src, *a, **kw)
    monkeypatch.setattr('mednist_fastai.web.runs.classify_folder', first)
    html = ann.sort(('a.png', phantoms['CXR'][0]), ('b.png', phantoms['CXR'][1]))
    assert 'gone from the disk' in html and shown(html)[0]=='b.png'

# Look

def test_look(ann, phantoms):
    ann.sort(('a.png', phantoms['CXR'][0]), ('b.png', phantoms['Hand'][0]), ('c.txt', b'no'))
    html = ann.get('/file/1/').text
    labels = open_learner().labels
    assert all(f'>{o}' in html for o in labels) and html.count('class="part"')==len(labels) and 'name="window"' not in html
    for path in ('thumb','image'):
        r = ann.get(f'/file/1/{path}.png')
        im = Image.open(io.BytesIO(r.data))
        assert r.content_type=='image/png' and max(im.size)<=1600 and not im.info
    for path in ('/file/3/','/file/99/','/file/0/','/file/99999999999999999999/','/file/x/'): assert ann.get(path).status_code==404
    assert 'href="/file/2/"' in html and 'id="before"' not in html

def test_windows_of_a_dicom(app, ann):
    from pydicom.data import get_testdata_file
    b = Path(get_testdata_file('CT_small.dcm')).read_bytes()
    ann.sort(('ct', b))
    assert 'name="window"' in ann.get('/file/1/').text
    views = {q:ann.get(f'/file/1/image.png{q}') for q in ('','?window=lung','?window=bone','?window=own&centre=40&width=400','?window=soft+tissue')}
    assert all(o.status_code==200 for o in views.values()) and len({o.data for q,o in views.items() if 'soft' not in q})==4
    assert views['?window=own&centre=40&width=400'].data==views['?window=soft+tissue'].data
    kept = on_disk(app.extensions['mednist'].settings.data)
    for c in range(5): assert ann.get(f'/file/1/image.png?window=own&centre={c}&width=400').status_code==200
    assert on_disk(app.extensions['mednist'].settings.data)==kept # somebody who asks for a million of them fills no disk
    for q in ('?window=x','?window=own','?window=own&centre=1&width=0','?window=own&centre=nan&width=1','?window=own&centre=1&width=inf'): assert ann.get(f'/file/1/image.png{q}').status_code==400

def test_where_it_looked(ann, phantoms):
    pytest.importorskip('pytorch_grad_cam', reason="maps need the extra 'explain'")
    ann.sort(('a.png', phantoms['CXR'][0]))
    html,end = ann.post('/file/1/cam', dict(label='CXR')).text,time.monotonic()+150
    while 'hx-get' in html and time.monotonic()<end: time.sleep(.3); html = ann.get('/file/1/cam?label=CXR').text
    assert 'cam.png?label=CXR' in html
    assert Image.open(io.BytesIO(ann.get('/file/1/cam.png?label=CXR').data)).size==(512,512)
    assert ann.get('/file/1/cam.png?label=Hand').status_code==404

def test_several_findings(site, tmp_path):
    from test_sort_multilabel import draw, make_learner
    for i,(l,r) in enumerate([(0,0),(220,0),(0,220),(220,220)]): draw(tmp_path/f'{i}.png', l, r, i)
    app = site(learner=make_learner(tmp_path/'halves', labels=['Left','Right','Top'], thresholds=(.5,.6,.99)))
    p = Person(app)
    html = p.sort(*[(f'{i}.png', (tmp_path/f'{i}.png').read_bytes()) for i in range(4)])
    assert 'Left, Right' in html and 'No Finding' in html
    look = p.get('/file/4/').text
    assert look.count('<line')==3 and 'from 99.00' in look and look.count('class="mark"')==2 # each finding beside its threshold
    (tmp_path/'r.csv').write_bytes(p.zip().read('report.csv'))
    df = read_report(tmp_path/'r.csv').sort_values('path')
    assert df[['d_Left','d_Right','d_Top']].astype(int).values.tolist()==[[0,0,0],[1,0,0],[0,1,0],[1,1,0]]
    assert {o.split('/')[0] for o in p.zip().namelist()}<={'Finding','No Finding','_review','report.csv'}

# For programs and watchers

def bearer(app, name='ann', store=None):
    from mednist_fastai.web.accounts import make_token
    return {'Authorization':f'Bearer {make_token(app.extensions["mednist"].secret, store, name)}'}

def test_classify_by_api(app, ann, phantoms):
    files = [(f'{c}.png', g[0]) for c,g in phantoms.items()]+[('none.png', b'')]
    c = app.test_client()
    def send(**kw): return c.post('/api/v1/classify', data={f'file{i}':(io.BytesIO(b), n) for i,(n,b) in enumerate(files)}, **kw)
    for h in ({}, {'Authorization':'Bearer nonsense'}, {'Authorization':bearer(app)['Authorization'][:-3]+'AAA'}): assert send(headers=h).status_code==401
    r = send(headers=bearer(app)).json
    assert [o['name'] for o in r['results']]==[n for n,_ in files] and r['learner']['digest']==open_learner().digest
    assert r['results'][-1]['error']=='empty: 0 bytes' and r['results'][-1]['status']=='unreadable' and r['results'][-1]['label'] is None
    ann.sort(*files)
    page = {o['name']:o for o in map(dict, _rows(app))}
    for o in r['results'][:-1]: # the page and the API say the same
        assert o['label']==page[o['name']]['label'] and abs(o['confidence']-page[o['name']]['confidence'])<1e-5 and abs(sum(o['probabilities'].values())-1)<1e-4
    assert len(list(app.extensions['mednist'].runs.sessions.iterdir()))==1 # nothing of the API's stays
    assert c.post('/api/v1/classify', headers=bearer(app)).status_code==400
    assert c.get('/api/v1/nothing').is_json and c.get('/api/v1/labels', headers=bearer(app)).status_code==404

def test_a_full_disk_takes_no_turns(app, monkeypatch):
    "A request of the API that fails early gives its turn back"
    def full(_): raise OSError(28, 'No space left on device')
    with monkeypatch.context() as m:
        m.setattr(Box, 'create', full)
        for _ in range(8): assert app.test_client().post('/api/v1/classify', data=dict(f=(io.BytesIO(picture(1)), 'a.png')), headers=bearer(app)).status_code==500
    assert app.extensions['mednist'].turns._value==4

def _rows(app):
    (box,) = app.extensions['mednist'].runs.sessions.iterdir()
    db = sqlite3.connect(box/'files.sqlite'); db.row_factory = sqlite3.Row
    try: return db.execute('SELECT * FROM file').fetchall()
    finally: db.close()

def test_tokens_end(app, monkeypatch):
    from mednist_fastai.web import accounts
    s = app.extensions['mednist'].secret
    t = accounts.make_token(s, None, 'ann')
    assert accounts.token_user(s, None, t, 1)=='ann' and accounts.token_user('another'+s, None, t, 1) is None
    import itsdangerous.timed
    monkeypatch.setattr(itsdangerous.timed.time, 'time', lambda t=time.time: t()+2*86400)
    assert accounts.token_user(s, None, t, 1) is None

def test_openapi_is_what_there_is(app, ann):
    doc = ann.get('/api/v1/openapi.json').json
    assert doc['openapi'].startswith('3.')
    have = {(re.sub(r'<.*?>', '{}', r.rule),m.lower()) for r in app.url_map.iter_rules() for m in r.methods if r.rule.startswith('/api/v1/') and m in ('GET','POST')}
    said = {(p,m) for p,o in doc['paths'].items() for m in o}
    assert said==have-{('/api/v1/','get'),('/api/v1/openapi.json','get')}
    def refs(o): return [v for k,v in o.items() if k=='$ref']+[x for v in o.values() for x in refs(v)] if isinstance(o, dict) else [x for v in o for x in refs(v)] if isinstance(o, list) else []
    assert refs(doc) and all(r.split('/')[-1] in doc['components']['schemas'] for r in refs(doc))
    assert all(p in ann.get('/api/v1/').text for p in doc['paths'])

def test_health_and_metrics(app, ann, phantoms):
    assert ann.get('/health').json['ok'] is True
    ann.sort(('a.png', phantoms['CXR'][0]))
    text = ann.get('/metrics').text
    assert 'mednist_uploaded_files_total 1.0' in text and 'mednist_classified_images 1.0' in text and 'mednist_sessions 1.0' in text and 'a.png' not in text
    far = dict(environ_base={'REMOTE_ADDR':'192.0.2.7'})
    assert app.test_client().get('/metrics', **far).status_code==403 and app.test_client().get('/metrics', headers=bearer(app), **far).status_code==200

def test_translations_are_complete_and_compiled():
    from babel.messages.extract import extract_from_dir
    from babel.messages.pofile import read_po
    from babel.messages.mofile import read_mo
    root = Path(__file__).parent.parent/'mednist_fastai/web'
    at = root/'translations/fr/LC_MESSAGES'
    po,mo = read_po(open(at/'messages.po', 'rb'), locale='fr'),read_mo(open(at/'messages.mo', 'rb'))
    keys = {'_':None, 'gettext':None, 'ngettext':(1,2), 'N_':None}
    used = {m[2] for m in extract_from_dir(root, [('**.py','python'),('templates/**.html','jinja2')], {'templates/**.html':dict(trim_blocks='true', lstrip_blocks='true')}, keys)}
    have = {m.id for m in po if m.id}
    assert used-have==set() and have-used==set()
    for m in po:
        if not m.id: continue
        said = [m.string] if isinstance(m.string, str) else list(m.string)
        compiled = mo.get(m.id if isinstance(m.id, str) else m.id[0]).string
        assert all(said) and not m.fuzzy and said==([compiled] if isinstance(compiled, str) else list(compiled))
        assert not list(m.check(po)), m.id

# A real server, in a process of its own

def test_twenty_people_at_once(tmp_path, serve):
    s = serve(tmp_path/'data')
    got = crowd(s, images=50 if os.environ.get('MEDNIST_FASTAI_LOAD')=='full' else 10)
    assert not got['errors'] and not got['mixed_up'] and len(got['seconds'])==20 and got['grew']<700*2**20
    assert s.stop()==0

def test_killed_during_an_upload_and_during_a_sort(tmp_path, serve):
    data = tmp_path/'data'
    s = serve(data)
    b = Browser(s.url)
    b.upload([('first.png', picture(1))]); b.wait()
    # half a body, and the server dies
    body,jar = b.body([('second.png', picture(2, 600))]),'; '.join(f'{c.name}={c.value}' for c in b.jar)
    with socket.create_connection(('127.0.0.1', s.port)) as raw:
        raw.sendall(f'POST /upload HTTP/1.1\r\nHost: localhost\r\nCookie: {jar}\r\nContent-Type: multipart/form-data; boundary=b\r\nContent-Length: {len(body)}\r\n\r\n'.encode()+body[:len(body)//2])
        time.sleep(.3)
        s.stop(signal.SIGKILL)
    # a killed server may also leave a file that it was about to take in
    (box,) = (data/'sessions').iterdir()
    (box/'files'/'0000099').write_bytes(b'half'); (box/'part'/'x').mkdir(); (box/'part'/'x'/'y').write_bytes(b'half')
    s = serve(data)
    b.url = s.url
    assert shown(b.get('/').read().decode())==['first.png'] and sorted(o.name for o in (box/'files').iterdir())==['0000001'] and not list((box/'part').iterdir())
    # a whole upload, and the server dies while it is sorted
    b.upload([(f'{i}.png', picture(i, 900)) for i in range(40)])
    s.stop(signal.SIGKILL)
    s = serve(data)
    b.url = s.url
    html = b.wait()
    assert '41 files' in html and len(zipfile.ZipFile(io.BytesIO(b.get('/download').read())).namelist())==42
    assert s.stop()==0
