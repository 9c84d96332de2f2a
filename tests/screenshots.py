"""The README's pictures of the page: `make screenshots`. A server of its own, a real browser, and images that the package draws."""
import io, sys, tempfile, threading
from pathlib import Path
import numpy as np
from PIL import Image, ImageDraw
from playwright.sync_api import sync_playwright
from mednist_fastai.phantom import phantom_classes, phantom_images
from mednist_fastai.search import SearchIndex
from mednist_fastai.store import Store
from mednist_fastai.web import create_app
from mednist_fastai.web.accounts import set_password
from mednist_fastai.web.serve import make_server
from mednist_fastai.web.settings import Settings
from test_web_browser import CHROMIUM, launch

NAME,WORD = 'ada','quiet river 44'

def inbox(at):
    "A folder as somebody may have it: images of all classes under names that tell nothing, and some that are none of them"
    at.mkdir()
    rng = np.random.default_rng(3)
    ims = [Image.fromarray(o) for l in phantom_classes('mednist') for o in phantom_images(l, 4, seed=11, size=256)]
    for i,k in enumerate(rng.permutation(len(ims))): ims[k].save(at/f'IM{i+1:04}.png')
    (page := Image.new('L', (256,256), 245)).save(at/'white.png')
    for i in range(14): ImageDraw.Draw(page).line([(30,30+14*i),(30+rng.integers(120, 195),30+14*i)], fill=60, width=3)
    page.save(at/'letter.png')
    (at/'IM0004-cut.png').write_bytes((at/'IM0004.png').read_bytes()[:900])

def keep(page, width, height, at):
    "The window as a PNG of as many colours as 150 kB have room for"
    page.set_viewport_size(dict(width=width, height=height))
    page.mouse.move(0, 0)
    page.wait_for_load_state('networkidle')
    im = Image.open(io.BytesIO(page.screenshot())).convert('RGB')
    for n in (256,192,128,96,64):
        im.quantize(n, dither=Image.Dither.NONE).save(at, optimize=True)
        if at.stat().st_size<150_000: break
    print(f'{at}: {at.stat().st_size/1000:.0f} kB, {n} colours')

def take(page, folder, to):
    page.goto('/sign-in')
    page.fill('#name', NAME); page.fill('#password', WORD); page.click('main button')
    page.goto('/')
    page.set_input_files('#folder', folder)
    page.wait_for_selector('.files')
    keep(page, 1100, 900, to/'page-result.png')
    page.click('text=Send to review'); page.wait_for_selector('text=In the store for review.')
    page.goto('/?status=sorted&label=Hand')
    page.click('.files .name a >> nth=0')
    page.click('#cam-form button'); page.wait_for_selector('.cam figure img', timeout=180_000)
    page.wait_for_selector('.tiles img')
    keep(page, 1000, 1060, to/'page-look.png')
    page.goto('/review/')
    for i in (1,2): page.keyboard.press('u'); page.wait_for_selector(f'text=Looked at: {i} of')
    page.wait_for_selector('.tiles img')
    keep(page, 1000, 960, to/'page-review.png')

def main(to):
    with tempfile.TemporaryDirectory() as d:
        at = Path(d)
        inbox(at/'inbox')
        for l in phantom_classes('mednist'):
            (at/'known'/l).mkdir(parents=True)
            for i,o in enumerate(phantom_images(l, 8, seed=12, size=256)): Image.fromarray(o).save(at/'known'/l/f'{i}.png')
        with Store.create(at/'store', NAME) as s: set_password(s, NAME, WORD, NAME)
        SearchIndex.create(at/'index').index(at/'known')
        s = Settings(data=at/'data', store=at/'store', index=at/'index', device='cpu', spare=0, port=0)
        app = create_app(s)
        server = make_server(app, s)
        thread = threading.Thread(target=server.run, daemon=True); thread.start()
        try:
            with sync_playwright() as p:
                page = launch(p).new_page(base_url=f'http://127.0.0.1:{server.effective_port}', locale='en-GB')
                page.set_default_timeout(60_000)
                take(page, at/'inbox', to)
        finally:
            server.close(); thread.join(10)
            app.extensions['mednist'].close()

if __name__=='__main__':
    if CHROMIUM is None: sys.exit('needs a browser: apt-get install chromium')
    main(Path(sys.argv[1]))
