"Corruptions: the same bytes for the same file and seed, in any process; any size and both modes; strengths in order"
import hashlib, subprocess, sys
import numpy as np
import pytest
from mednist_fastai.corrupt import CORRUPTIONS, CorruptionError, corrupt, corruption_table
from mednist_fastai.phantom import phantom_images

grey = phantom_images('CXR', 6, seed=1, size=96)
colour = phantom_images('polyps', 2, seed=1, size=48)

def test_twelve_by_five():
    t = corruption_table()
    assert len(CORRUPTIONS)==12 and list(t.index)==list(CORRUPTIONS) and list(t.columns[:5])==[1,2,3,4,5]
    for k,(_,params,what) in CORRUPTIONS.items():
        assert len(params)==5 and len(set(params))==5 and what, k
        assert list(params) in (sorted(params), sorted(params, reverse=True)), k # strengths go one way

@pytest.mark.parametrize('kind', CORRUPTIONS)
def test_shape_type_and_the_argument_untouched(kind):
    for a in (grey[0], grey[0][:41], grey[0][:,:7], grey[0][:1,:1], colour[0], np.zeros((30,20), np.uint8), np.full((20,30,3), 255, np.uint8)):
        before = a.copy()
        for s in (1,3,5):
            b = corrupt(a, kind, s)
            assert b.shape==a.shape and b.dtype==np.uint8 and b.flags.writeable
        assert (a==before).all()
    view = np.flip(grey[0])[::2]
    assert (corrupt(view, kind, 2)==corrupt(np.ascontiguousarray(view), kind, 2)).all() # how it lies in memory says nothing

@pytest.mark.parametrize('kind', CORRUPTIONS)
def test_a_stronger_one_changes_more(kind):
    change = [np.mean([np.abs(corrupt(a, kind, s).astype(int)-a).mean() for a in grey]) for s in range(1, 6)]
    assert change[0]>0 and (np.diff(change)>0).all(), change

def test_the_same_bytes_in_another_process():
    "Nothing hangs on the order of calls, the process, or numpy's own state"
    code = ('import hashlib, numpy as np; from mednist_fastai.corrupt import *; from mednist_fastai.phantom import phantom_images\n'
            'np.random.seed(7); a = phantom_images("CXR", 6, seed=1, size=96)[2]\n'
            'print(hashlib.sha256(b"".join(corrupt(a, k, 4, seed=3).tobytes() for k in reversed(CORRUPTIONS))).hexdigest())')
    other = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout.split()[-1]
    assert other==hashlib.sha256(b''.join(corrupt(grey[2], k, 4, seed=3).tobytes() for k in reversed(CORRUPTIONS))).hexdigest()

def test_images_differ_in_what_is_drawn():
    "Noise of two images, and of two seeds, is not the same noise"
    flat = [np.full((32,32), v, np.uint8) for v in (100,101)]
    a,b = (corrupt(o, 'noise', 3).astype(int)-o for o in flat)
    assert abs(np.corrcoef(a.ravel(), b.ravel())[0,1])<.2
    assert (corrupt(flat[0], 'noise', 3, seed=1)!=corrupt(flat[0], 'noise', 3)).any()
    assert len({corrupt(np.full((40,40), v, np.uint8), 'borders', 5)[0,0] for v in range(30, 60)})==3 # black, grey and white

def test_what_each_says_it_does():
    a = grey[0]
    assert (corrupt(a, 'inversion', 5)==255-a).all()
    assert (corrupt(a, 'inversion', 3)[a<128]==a[a<128]).all()
    std = (corrupt(np.full((200,200), 128, np.uint8), 'noise', 2).astype(float)).std()/255
    assert abs(std-.06)<.002
    frame = corrupt(np.full((100,100), 77, np.uint8), 'borders', 5) # 25 on each side of 100, then all of it to 100
    assert abs((frame[50]==77).sum()-100/1.5)<=2
    assert corrupt(a, 'contrast', 5).std() < .2*a.std()
    point = np.zeros((81,81), np.uint8); point[40,40] = 255
    assert (corrupt(point, 'motion', 5)>0).sum()<=40 and abs(corrupt(point, 'motion', 5).astype(int).sum()-255)<30 # a line, its light kept
    assert (corrupt(a, 'text', 1)!=a).mean()<.1 and corrupt(np.zeros_like(a), 'text', 1).max()>200
    small = grey[0][::8,::8]
    assert (corrupt(small, 'downscale', 5)==small).all() # a file of 12 pixels is a thumbnail of 12 already

def test_mistakes_are_told():
    with pytest.raises(CorruptionError, match='noise, blur'): corrupt(grey[0], 'snow')
    for s in (0,6,2.5,None,'3'):
        with pytest.raises(CorruptionError, match='strength'): corrupt(grey[0], 'noise', s)
    for a in (grey[0]/255, grey[0].tolist(), grey, np.zeros((0,4), np.uint8), np.zeros((4,4,4), np.uint8)):
        with pytest.raises(CorruptionError, match='uint8'): corrupt(a, 'noise')
