"Fixtures shared by the tests: synthetic images and a tiny learner folder that was really trained on them"
import os, subprocess, sys
import numpy as np
from PIL import Image
import pytest

MAKE = '''
import sys, warnings
warnings.simplefilter('ignore')
from pathlib import Path
from mednist_fastai.data import make_split
from mednist_fastai.learner import save_learner
from mednist_fastai.phantom import make_phantoms
from mednist_fastai.train import Recipe, train
dst = Path(sys.argv[1])
df = make_split(make_phantoms(dst/'train', n=60), 'random')
learn,record = train(Recipe('tiny', 'phantom', arch='test_resnet', epochs=8, lr=5e-3, bs=32), df, path=dst, bar=False)
save_learner(learn, dst/'tiny', record)
make_phantoms(dst/'phantoms', n=50, seed=1)
'''

SLOW = 'test_studies','test_train','test_retrain','test_cli','test_data','test_store','test_web_browser' # files that take longest, whatever the number of their tests

def pytest_collection_modifyitems(items):
    "The longest files first, so that of two processes neither waits for the other at the end"
    items.sort(key=lambda o: o.path.stem not in SLOW)

@pytest.fixture(scope='session')
def lab(tmp_path_factory):
    """A folder with `tiny` (a learner folder) and `phantoms` (300 images it has not seen, 50 a class).
    Made in a process of its own, so that the tests themselves run without torch; one thread, since a busy machine makes more of them slower."""
    path = tmp_path_factory.mktemp('lab')
    res = subprocess.run([sys.executable, '-c', MAKE, path], env=os.environ|{'OMP_NUM_THREADS':'1'}, capture_output=True, text=True)
    if res.returncode: pytest.fail(f'the tiny learner could not be made:\n{res.stderr[-3000:]}')
    return path

@pytest.fixture(scope='session')
def tiny(lab): return lab/'tiny'

@pytest.fixture(scope='session')
def phantom_files(lab):
    "Paths (str) of 300 synthetic images, sorted; the folder's name is the class"
    return sorted(str(o) for o in (lab/'phantoms').glob('*/*.png'))

def put(folder, *names, mode='L'):
    "Small images, all different"
    for n in names:
        (folder/n).parent.mkdir(parents=True, exist_ok=True)
        rng = np.random.default_rng(list(str(n).encode()))
        Image.fromarray(rng.integers(0, 256, (16,16) if mode=='L' else (16,16,3), dtype=np.uint8)).save(folder/n)

@pytest.fixture
def site(tmp_path):
    "Makes applications of the page, and stops them at the end"
    from mednist_fastai.web import create_app
    from mednist_fastai.web.settings import Settings
    made = []
    def make(**kw):
        made.append(create_app(Settings(**{'data':tmp_path/'data', 'device':'cpu', 'spare':0, **kw})))
        return made[-1]
    yield make
    for o in made: o.extensions['mednist'].close()

@pytest.fixture
def serve():
    "Starts real servers of the page, and ends those that still run"
    import signal
    from person import Server
    made = []
    def start(*args, **kw): made.append(Server(*args, **kw)); return made[-1]
    yield start
    for o in made:
        if o.process.poll() is None: o.stop(signal.SIGKILL)
