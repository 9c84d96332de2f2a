"Phantoms: bytes that never change, and a folder that is whole or not there"
import errno,hashlib,json,os,signal,subprocess,sys,time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mednist_fastai import phantom
from mednist_fastai.phantom import PhantomError, PhantomFolderError, make_phantoms, phantom_classes, phantom_images

LABELS = [*phantom_classes(), *phantom_classes('endoscopy')]
ROOT = str(Path(phantom.__file__).parents[1])
KVASIR = ['dyed-lifted-polyps', 'dyed-resection-margins', 'esophagitis', 'normal-cecum', 'normal-pylorus', 'normal-z-line', 'polyps', 'ulcerative-colitis']

# sha256 (start) of 40 images at 64 px and 2 at 100 px, seed 7. The drawing uses only correctly rounded operations, so these hold on any
# processor and NumPy. Whoever changes a pixel on purpose raises `phantom._version` and prints them anew: PYTHONPATH=. python tests/test_phantom.py
VERSION = 1
DIGESTS = {
    'AbdomenCT': 'fd4d4b6c3cb89198',
    'BreastMRI': '9351541a80d4b3b0',
    'CXR': '75610e0313ca9452',
    'ChestCT': 'bd315fbf5575e5d7',
    'Hand': '8c493d2202234f94',
    'HeadCT': '7abc2ff19a4a040f',
    'dyed-lifted-polyps': 'f8c810b7cb0847bf',
    'dyed-resection-margins': '6c590e99eda33eb1',
    'esophagitis': '7a4193cbeda10c8f',
    'normal-cecum': '0db8cecf345960b0',
    'normal-pylorus': '1c83b897e4edce1d',
    'normal-z-line': 'b8477fd3ef038a4d',
    'polyps': '6b91e46710b944af',
    'ulcerative-colitis': 'fe623099fcab0481'
}

def digest(label):
    h = hashlib.sha256()
    for n,size in ((40,64), (2,100)): h.update(phantom_images(label, n, 7, size).tobytes())
    return h.hexdigest()[:16]

@pytest.mark.parametrize('label', LABELS)
def test_bytes(label):
    assert phantom._version == VERSION
    assert digest(label) == DIGESTS[label], 'the drawing has changed: raise phantom._version and renew DIGESTS'

def test_bytes_on_a_plain_processor():
    "Without the vector instructions that NumPy and its BLAS choose on this machine the bytes are the same"
    code = 'from test_phantom import *\nfor o in LABELS: assert digest(o) == DIGESTS[o], o'
    env = os.environ | dict(PYTHONPATH=ROOT, NPY_DISABLE_CPU_FEATURES='AVX2 FMA3 AVX512F AVX512_SKX X86_V3 X86_V4', OPENBLAS_CORETYPE='Prescott')
    r = subprocess.run([sys.executable, '-W', 'ignore', '-c', code], cwd=Path(__file__).parent, env=env, capture_output=True, text=True)
    assert r.returncode == 0, r.stderr

def test_classes():
    assert phantom_classes() == ['AbdomenCT', 'BreastMRI', 'CXR', 'ChestCT', 'Hand', 'HeadCT']
    assert phantom_classes('endoscopy') == KVASIR
    with pytest.raises(PhantomError, match='mednist, endoscopy'): phantom_classes('ultrasound')

@pytest.mark.parametrize('label', LABELS)
@pytest.mark.parametrize('size', [16, 32, 33, 224])
def test_sizes(label, size):
    x = phantom_images(label, 3, 0, size)
    assert x.dtype == np.uint8 and x.shape == (3,size,size) + ((3,) if label in KVASIR else ())
    assert x.std(axis=(1,2)).min() > 2 # no empty picture

@pytest.mark.parametrize('size', [32, 64, 101])
def test_prefix(size):
    "Image i depends neither on n nor on where a batch ends"
    for label in ('ChestCT', 'polyps'):
        x = phantom_images(label, 150, 9, size)
        for n in (0, 1, 31, 33, 149): assert np.array_equal(x[:n], phantom_images(label, n, 9, size))

def test_no_two_alike():
    seen = [x.tobytes() for o in phantom_classes() for seed in (0, 1, 2**64-1) for x in phantom_images(o, 100, seed)]
    assert len(set(seen)) == len(seen)

def test_classes_have_their_own_grain():
    "Classes share no dice: the same seed must not give the same pixel noise to two of them"
    a,b = (phantom_images(o, 30, 0).astype(float).reshape(30, -1) for o in ('Hand', 'CXR'))
    a,b = (np.diff(o)-np.diff(o).mean(1, keepdims=True) for o in (a, b))
    r = (a*b).sum(1)/np.sqrt((a*a).sum(1)*(b*b).sum(1))
    assert abs(np.median(r)) < .2

@pytest.mark.parametrize('kw', [dict(label='Foot'), dict(n=-1), dict(seed=-1), dict(seed=2**64), dict(size=8), dict(size=5000)])
def test_refused(kw):
    with pytest.raises(PhantomError): phantom_images(**(dict(label='Hand', n=2) | kw))

@pytest.mark.parametrize('kw', [dict(n=0), dict(kind='x'), dict(size=8), dict(seed=-1)])
def test_refused_before_anything_is_written(tmp_path, kw):
    with pytest.raises(PhantomError): make_phantoms(tmp_path/'p', **(dict(n=2) | kw))
    assert not any(tmp_path.iterdir())

def test_folder(tmp_path):
    dst = tmp_path/'new'/'p'
    df = make_phantoms(dst, n=3, seed=4)
    assert list(df.columns) == ['path', 'label', 'split', 'group', 'source']
    assert len(df) == 18 and set(df.source) == {'phantom'} and df.attrs['source'] == 'phantom'
    assert sorted(o.name for o in dst.iterdir()) == sorted([*phantom_classes(), 'SYNTHETIC.md', 'phantom.json'])
    assert 'not patients' in (dst/'SYNTHETIC.md').read_text()
    for path,label in zip(df.path, df.label):
        im = Image.open(path)
        assert im.text['Description'] == 'synthetic phantom, not a patient'
        i = int(Path(path).stem)
        assert np.array_equal(np.array(im), phantom_images(label, i+1, 4)[i])
    assert sorted(o.name for o in tmp_path.iterdir()) == ['new'] and [o.name for o in dst.parent.iterdir()] == ['p']

def test_second_call_writes_nothing(tmp_path, monkeypatch):
    a = make_phantoms(tmp_path/'p', n=2, kind='endoscopy', size=32)
    before = {o: o.stat().st_mtime_ns for o in (tmp_path/'p').rglob('*')}
    monkeypatch.setattr(phantom, '_fill', None)
    b = make_phantoms(tmp_path/'p', n=2, kind='endoscopy', size=32)
    assert a.equals(b) and a.attrs['digest'] == b.attrs['digest']
    assert before == {o: o.stat().st_mtime_ns for o in (tmp_path/'p').rglob('*')}

@pytest.mark.parametrize('kw', [dict(n=3), dict(seed=1), dict(size=32), dict(kind='endoscopy')])
def test_other_arguments(tmp_path, kw):
    make_phantoms(tmp_path/'p', n=2)
    with pytest.raises(PhantomFolderError, match=next(iter(kw))) as e: make_phantoms(tmp_path/'p', **(dict(n=2) | kw))
    assert e.value.path == tmp_path/'p'

def _drop(p): next(p.glob('Hand/*')).unlink()
def _alter(p): next(p.glob('Hand/*')).write_bytes(next(p.glob('CXR/*')).read_bytes())
def _add(p): (p/'Hand'/'mine.png').write_bytes(b'x')
def _rename(p): (p/'Hand').rename(p/'Foot')
def _empty(p): [o.unlink() for o in p.glob('*/*')]
def _damage(p): (p/'phantom.json').write_text('{')
def _forget(p): (p/'phantom.json').unlink()

@pytest.mark.parametrize('harm', [_drop, _alter, _add, _rename, _empty, _damage, _forget])
def test_changed_folder(tmp_path, harm):
    make_phantoms(tmp_path/'p', n=2)
    harm(tmp_path/'p')
    left = sorted(tmp_path.rglob('*'))
    with pytest.raises(PhantomFolderError): make_phantoms(tmp_path/'p', n=2)
    assert sorted(tmp_path.rglob('*')) == left

def test_foreign_places(tmp_path):
    (tmp_path/'file').write_text('x')
    (tmp_path/'full').mkdir()
    (tmp_path/'full'/'a.txt').write_text('x')
    for o in ('file', 'full'):
        with pytest.raises(PhantomFolderError): make_phantoms(tmp_path/o, n=1)
    assert (tmp_path/'full'/'a.txt').read_text() == 'x' and (tmp_path/'file').read_text() == 'x'

def test_empty_and_linked_and_relative(tmp_path, monkeypatch):
    (tmp_path/'empty').mkdir()
    assert len(make_phantoms(tmp_path/'empty', n=1)) == 6
    (tmp_path/'target').mkdir()
    (tmp_path/'link').symlink_to(tmp_path/'target')
    df = make_phantoms(tmp_path/'link', n=1)
    assert df.path[0].startswith(str(tmp_path/'link')) and (tmp_path/'target'/'Hand').is_dir() and (tmp_path/'link').is_symlink()
    monkeypatch.chdir(tmp_path)
    assert make_phantoms('mednist', n=1).attrs['root'] == str(tmp_path/'mednist') # a folder, not the source of that name

def test_moved_folder_still_verifies(tmp_path):
    a = make_phantoms(tmp_path/'p', n=1)
    (tmp_path/'p').rename(tmp_path/'q')
    assert make_phantoms(tmp_path/'q', n=1).attrs['digest'] == a.attrs['digest']

@pytest.mark.parametrize('error', [OSError(errno.ENOSPC, 'No space left on device'), KeyboardInterrupt()])
def test_all_or_nothing(tmp_path, monkeypatch, error):
    save,calls = Image.Image.save,[]
    def _save(self, *args, **kw):
        calls.append(args)
        if len(calls) == 8: raise error
        return save(self, *args, **kw)
    monkeypatch.setattr(Image.Image, 'save', _save)
    with pytest.raises(type(error)): make_phantoms(tmp_path/'p', n=4)
    assert not any(tmp_path.iterdir())
    monkeypatch.undo()
    assert len(make_phantoms(tmp_path/'p', n=4)) == 24

@pytest.mark.skipif(os.name == 'nt', reason='signals')
def test_killed(tmp_path):
    "A killed process leaves its hidden workplace at most, and the next one is not disturbed"
    code = f'from mednist_fastai.phantom import *; make_phantoms({str(tmp_path/"p")!r}, n=3000)'
    pr = subprocess.Popen([sys.executable, '-c', code], env=os.environ | dict(PYTHONPATH=ROOT))
    end = time.time() + 60
    while time.time() < end and not list(tmp_path.rglob('000010.png')): time.sleep(.02)
    pr.send_signal(signal.SIGKILL)
    pr.wait()
    assert not (tmp_path/'p').exists() and all(o.name.startswith('.p.') for o in tmp_path.iterdir())
    assert len(make_phantoms(tmp_path/'p', n=1)) == 6

def test_at_the_same_time(tmp_path):
    with ThreadPoolExecutor(3) as ex: found = list(ex.map(lambda _: make_phantoms(tmp_path/'p', n=3), range(3)))
    assert len({o.attrs['digest'] for o in found}) == 1 and [o.name for o in tmp_path.iterdir()] == ['p']

def test_corner_and_mean_do_not_tell():
    "A table from one grey to the class stays far below a network (guessing: 1 in 6)"
    cs = phantom_classes()
    x,v = (np.stack([phantom_images(o, n, s) for o in cs]) for n,s in ((300, 20), (100, 21)))
    for f in (lambda o: o[...,0,0], lambda o: o[...,-1,-1], lambda o: o.mean((-1,-2))):
        count = np.stack([np.bincount(f(o).astype(int)//4, minlength=64) for o in x])
        assert (count.argmax(0)[f(v).astype(int)//4] == np.arange(6)[:,None]).mean() < .5

if __name__ == '__main__': print(json.dumps({o: digest(o) for o in LABELS}, indent=4).replace('"', "'"))
