"""The clinician's way through a real browser (Chromium by Playwright): upload, table, download, review, in both languages, with keys, light and dark, phone and screen.

Pictures of the pages are kept under `screenshots/` of the folder named by MEDNIST_FASTAI_ARTEFACTS, else in pytest's own."""
import hashlib, io, os, re, shutil, subprocess, tarfile, threading, zipfile
from contextlib import contextmanager
from pathlib import Path
import pytest
from mednist_fastai.learner import open_learner
from mednist_fastai.store import Store, pixel_file
from mednist_fastai.web import create_app
from mednist_fastai.web.accounts import set_password
from mednist_fastai.web.serve import make_server
from mednist_fastai.web.settings import Settings

playwright = pytest.importorskip('playwright.sync_api', reason='needs playwright: pip install playwright')
CHROMIUM = next((o for o in map(shutil.which, ('chromium','chromium-browser','google-chrome')) if o), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason='needs a browser: apt-get install chromium')
SIZES = dict(phone=(390,844), laptop=(1280,800), screen=(2560,1440))

def launch(p):
    root = hasattr(os, 'geteuid') and os.geteuid()==0 # in a container Chromium's own sandbox needs rights that root doesn't have
    return p.chromium.launch(executable_path=CHROMIUM, args=['--no-sandbox'] if root else [])

@pytest.fixture(scope='module')
def browser():
    with playwright.sync_playwright() as p:
        b = launch(p)
        yield b
        b.close()

@pytest.fixture(scope='module')
def phantoms(tmp_path_factory):
    from mednist_fastai.phantom import make_phantoms
    at = tmp_path_factory.mktemp('phantoms')
    make_phantoms(at, n=4)
    return at

@pytest.fixture(scope='module')
def shots(tmp_path_factory):
    at = Path(os.environ['MEDNIST_FASTAI_ARTEFACTS'])/'screenshots' if os.environ.get('MEDNIST_FASTAI_ARTEFACTS') else tmp_path_factory.mktemp('screenshots')
    at.mkdir(parents=True, exist_ok=True)
    return at

@contextmanager
def serving(at, **kw):
    "A real server with a store, an admin and a reviewer, on a free port"
    with Store.create(at/'store', 'ann') as s:
        s.add_user('bob', 'reviewer', 'ann')
        set_password(s, 'ann', 'correct horse 1', 'ann'); set_password(s, 'bob', 'battery staple 2', 'bob')
    s = Settings(data=at/'data', store=at/'store', device='cpu', spare=0, port=0, **kw)
    app = create_app(s)
    server = make_server(app, s)
    t = threading.Thread(target=server.run, daemon=True)
    t.start()
    yield f'http://127.0.0.1:{server.effective_port}'
    server.close(); t.join(10)
    app.extensions['mednist'].close()

@pytest.fixture(scope='module')
def url(tmp_path_factory, phantoms):
    from mednist_fastai.search import SearchIndex
    at = tmp_path_factory.mktemp('server')
    SearchIndex.create(at/'index').index(phantoms)
    with serving(at, index=at/'index') as u: yield u

@pytest.fixture
def person(browser, request):
    "Opens a page; whatever the browser complains of fails the test"
    contexts,said = [],[]
    def make(size='laptop', dark=False, locale='en-GB', url=None, **kw):
        url = url or request.getfixturevalue('url')
        c = browser.new_context(base_url=url, viewport=dict(zip(('width','height'), SIZES[size])), color_scheme='dark' if dark else 'light', locale=locale, accept_downloads=True, **kw)
        contexts.append(c)
        page = c.new_page()
        page.set_default_timeout(30_000)
        page.on('pageerror', lambda e: said.append(str(e)))
        page.on('console', lambda m: said.append(m.text) if m.type in ('error','warning') and 'status of 4' not in m.text else None)
        page.on('request', lambda r: said.append(f'asks elsewhere: {r.url}') if not r.url.startswith((url,'blob:','data:')) else None)
        return page
    yield make
    for c in contexts: c.close()
    assert not said

def files(phantoms, n=2): return [o for d in sorted(phantoms.iterdir()) if d.is_dir() for o in sorted(d.glob('*.png'))[:n]]

def upload(page, paths):
    page.goto('/')
    page.set_input_files('#files', paths)
    page.wait_for_selector('#progress.ready')

def sign_in(page, name='bob', word='battery staple 2'):
    page.goto('/sign-in')
    page.fill('#name', name); page.fill('#password', word)
    page.click('main button')
    page.wait_for_selector(f'.who >> text={name}')

@pytest.mark.parametrize('locale,words', [('en-GB',('12 files','Download as ZIP','unreadable')),('fr-FR',('13 fichiers','Télécharger en ZIP','illisible'))])
def test_from_upload_to_download(person, phantoms, shots, locale, words, tmp_path):
    bad = tmp_path/'"><img src=x onerror=alert(1)>.png'
    bad.write_bytes(b'no image')
    page = person(locale=locale)
    page.on('dialog', lambda d: pytest.fail(f'a script ran: {d.message}'))
    page.goto('/')
    page.screenshot(path=shots/f'{locale}-empty.png')
    upload(page, [*files(phantoms), bad])
    text = page.inner_text('main')
    assert words[0].replace('12','13') in text and words[2] in text and bad.name in text
    assert page.locator('.files tbody tr').count()==13
    page.wait_for_load_state('networkidle')
    page.screenshot(path=shots/f'{locale}-result.png', full_page=True)
    with page.expect_download() as d: page.click(f'text={words[1]}')
    z = zipfile.ZipFile(d.value.path())
    assert len(z.namelist())==13 and 'report.csv' in z.namelist()
    page.click('.files tbody tr.s-sorted .name a >> nth=0')
    page.wait_for_selector('.bars')
    page.keyboard.press('ArrowRight') # the next image
    page.wait_for_url('**/file/2/')
    page.screenshot(path=shots/f'{locale}-look.png', full_page=True)
    page.click('header button[value=fr]' if locale=='en-GB' else 'header button[value=en]')
    page.wait_for_selector('html[lang=fr]' if locale=='en-GB' else 'html[lang=en]')
    assert '/file/2/' in page.url
    page.goto('/')
    page.click('.ask summary'); page.click('.ask button')
    page.wait_for_selector('.empty')

def test_a_whole_folder_in_parts(person, tmp_path):
    "More files than one request takes: they go up in parts, keep their paths, and progress is shown"
    from person import picture
    for i in range(230): (tmp_path/'study'/f'series{i//100}').mkdir(parents=True, exist_ok=True); (tmp_path/'study'/f'series{i//100}'/f'{i:03}.png').write_bytes(picture(i, 32))
    page,posts = person(),[]
    page.on('request', lambda r: posts.append(r.url) if r.method=='POST' and r.url.endswith('/upload') else None)
    page.goto('/')
    page.set_input_files('#folder', tmp_path/'study')
    page.wait_for_selector('#progress.ready:has-text("230")', timeout=60_000)
    page.wait_for_selector('.files')
    assert len(posts)==3 and page.locator('.files bdi >> nth=0').inner_text().startswith('study/series')
    assert not page.is_visible('#sending')

def test_dropped_files(person, phantoms):
    page = person()
    page.goto('/')
    path = files(phantoms)[0]
    data = page.evaluate_handle('''async b => { const d = new DataTransfer(); d.items.add(new File([new Uint8Array(b)], 'dropped.png')); return d }''', list(path.read_bytes()))
    page.dispatch_event('#upload', 'drop', dict(dataTransfer=data))
    page.wait_for_selector('#progress.ready')
    assert page.locator('.files bdi').inner_text()=='dropped.png'

def test_review_with_the_keyboard(person, phantoms, shots):
    page = person()
    sign_in(page)
    upload(page, files(phantoms))
    page.click('text=Send to review')
    page.wait_for_selector('text=In the store for review.')
    page.click('nav >> text=Review')
    page.wait_for_selector('text=Looked at: 0 of 12')
    page.wait_for_selector('.tiles li')
    page.wait_for_load_state('networkidle')
    page.screenshot(path=shots/'review.png', full_page=True)
    first = page.url
    page.keyboard.press('ArrowRight'); page.wait_for_url(lambda u: u!=first)
    page.keyboard.press('ArrowLeft'); page.wait_for_url(first)
    page.keyboard.press('3')
    page.wait_for_selector('text=Looked at: 1 of 12')
    page.keyboard.press('u')
    page.wait_for_selector('text=Looked at: 2 of 12')
    page.keyboard.press('z') # takes the last answer back
    page.wait_for_selector('text=Looked at: 1 of 12')
    page.fill('#text', '13u comes <b>here</b>'); assert page.input_value('#text')=='13u comes <b>here</b>' # keys are letters where somebody writes
    page.click('text=Add >> nth=-1')
    page.wait_for_selector('blockquote')
    assert page.inner_text('blockquote p')=='13u comes <b>here</b>'

@pytest.fixture
def home(lab, tmp_path, monkeypatch):
    "A home with the tiny learner; its recipe's source, `phantom`, is found where the server runs"
    from mednist_fastai.retrain import make_home
    (tmp_path/'phantom').symlink_to(lab/'train')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('OMP_NUM_THREADS', '1')
    return make_home(lab/'tiny', tmp_path/'home')

def test_from_upload_to_another_learner(person, home, phantom_files, tmp_path, shots):
    "Sorted, corrected, trained on: the verdict with its figures, and the step that takes it back or overrules it"
    truth = {hashlib.sha256(pixel_file(o)[0]).hexdigest():Path(o).parent.name for o in phantom_files[::20]}
    with serving(tmp_path, home=home, learner=home) as url:
        page,first = person(url=url),open_learner(home).digest[:12]
        upload(page, phantom_files[::20])
        assert page.locator('.files tbody tr').count()==15 and first in page.inner_text('footer')
        sign_in(page)
        page.goto('/')
        page.click('text=Send to review')
        page.wait_for_selector('text=In the store for review.')
        page.click('nav >> text=Review')
        for i in range(15):
            page.wait_for_selector(f'text=Looked at: {i} of 15')
            page.click(f'[data-label={truth[page.url.split("/")[-1].split("?")[0]]}]')
        page.wait_for_selector('text=Nothing is left')
        page.click('text=Sign out')
        sign_in(page, 'ann', 'correct horse 1')
        page.click('nav >> text=Admin')
        page.click('text=Train on what people said')
        page.wait_for_selector('text=running')
        page.wait_for_selector('#retraining b:text-matches("promoted|refused|failed")', timeout=400_000)
        page.wait_for_selector('button[value=retrain]:enabled')
        page.screenshot(path=shots/'verdict.png', full_page=True)
        text,passed = page.inner_text('#retraining pre'),'promoted: the new learner is in use' in page.inner_text('#retraining')
        assert re.search(r'test: phantom, random test, seed 0: \d+ errors of \d+ before, \d+ now; \d+ broken, \d+ mended', text) and ('FAILED' in text)!=passed, text
        steps = page.locator('#retraining tbody tr')
        assert steps.count()==2 and steps.nth(0).locator('td').nth(1).inner_text()==('promote' if passed else 'refuse')
        assert (first in page.inner_text('footer'))!=passed and open_learner(home).digest[:12] in page.inner_text('footer')
        page.click('text=Back to the learner before' if passed else 'text=Use it all the same')
        page.wait_for_selector(f'#retraining td:text-is("{"rollback" if passed else "promote"}")', timeout=120_000)
        page.wait_for_selector('button[value=retrain]:enabled')
        assert (first in page.inner_text('footer'))==passed and open_learner(home).digest[:12] in page.inner_text('footer')
        if not passed: # what was sorted before says by whom
            page.click('text=Sign out')
            sign_in(page)
            page.goto('/')
            page.wait_for_selector(f'text=sorted by an earlier learner >> text={first}')

def test_without_scripts(person, phantoms):
    "Slower and plainer, but everything goes"
    page = person(java_script_enabled=False)
    page.goto('/')
    page.set_input_files('#files', files(phantoms)[:3])
    page.click('noscript button')
    for _ in range(60):
        if page.locator('.files tbody tr').count()==3: break
        page.wait_for_timeout(200); page.goto('/')
    assert page.locator('.files tbody tr').count()==3

@pytest.fixture(scope='session')
def axe(tmp_path_factory):
    "axe-core, fetched for the test and not kept: its licence is another"
    at = tmp_path_factory.mktemp('axe')
    if not shutil.which('npm'): pytest.skip('axe-core is fetched with npm, which is not here')
    r = subprocess.run(['npm','pack','axe-core@4','--silent'], cwd=at, capture_output=True, text=True, timeout=60)
    if r.returncode: pytest.skip(f'axe-core could not be fetched: {r.stderr.strip()[-200:]}')
    with tarfile.open(next(at.glob('*.tgz'))) as t: return t.extractfile('package/axe.min.js').read().decode()

ALL = [('phone',True),('laptop',False),('phone',False),('laptop',True),('screen',False)]

@pytest.mark.parametrize('size,dark', ALL if os.environ.get('MEDNIST_FASTAI_ARTEFACTS') else ALL[:2]) # each size and each light once, all of them where pictures are kept
def test_everybody_can_use_it(person, phantoms, shots, axe, size, dark):
    "No serious finding of axe-core on any page, and nothing sticks out of the window"
    page = person(size, dark, bypass_csp=True) # only so that axe may be put into the page
    sign_in(page, 'ann', 'correct horse 1')
    upload(page, files(phantoms, 1))
    look = page.locator('.files .name a').first.get_attribute('href')
    page.click('text=Send to review')
    page.wait_for_selector('text=In the store for review.')
    for name,path in dict(sort='/', look=look, review='/review/', admin='/admin/', me='/me', api='/api/v1/', missing='/nothing', signin='/sign-in').items():
        page.goto(path)
        page.wait_for_function("!document.querySelector('.htmx-request, [hx-trigger=load] > div:empty')") # what is fetched after the page is there, too
        page.screenshot(path=shots/f'{size}-{"dark" if dark else "light"}-{name}.png', full_page=True)
        page.evaluate(axe)
        found = page.evaluate('axe.run(document, {resultTypes: ["violations"]})')['violations']
        assert not [(o['id'],o['nodes'][0]['html'][:200],o['nodes'][0].get('failureSummary')) for o in found if o['impact'] in ('serious','critical')], name
        assert page.evaluate('document.documentElement.scrollWidth <= window.innerWidth'), f'{name} is wider than the window'
