"Pictures of files for the browser: always decoded here and written anew as PNG, never the bytes that somebody sent"
import hashlib, importlib.util, io, os, subprocess, sys, threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from ..images import WINDOWS, ImageError, open_image

THUMB,LARGE = 160,1600 # longest side, pixels
decoders = threading.Semaphore(2) # the largest picture takes 200 MB while it is decoded

def write_whole(at:Path, data:bytes):
    "A file appears whole or not at all"
    new = at.with_name(f'{at.name}.{os.getpid()}.{threading.get_ident()}')
    new.write_bytes(data)
    os.replace(new, at)

def png(path, side, window=None)->bytes:
    "The picture of a file, at most `side` pixels long; raises an `ImageError`"
    with decoders:
        im = open_image(path, 'RGB', size=side, window=window)
        im.thumbnail((side,side))
    im.info.clear()
    if all(lo==hi for lo,hi in _channel_spread(im)): im = im.getchannel(0)
    out = io.BytesIO()
    im.save(out, 'PNG')
    return out.getvalue()

def _channel_spread(im):
    from PIL import ImageChops
    r,g,b = im.split()
    return ImageChops.difference(r, g).getextrema(),ImageChops.difference(r, b).getextrema()

def cached(at:Path, make)->bytes:
    "What `make` gives, from the file `at` where it was made before"
    try: return at.read_bytes()
    except FileNotFoundError: pass
    data = make()
    if at.parent.is_dir(): write_whole(at, data)
    return data

def read_window(args):
    "The window that the browser asks for: None, a name, or (centre, width); raises `ValueError`"
    if (name := args.get('window') or '') in WINDOWS: return name
    if name=='own':
        c,w = float(args.get('centre', '')),float(args.get('width', ''))
        if not (abs(c)<1e6 and 0<w<1e6): raise ValueError('out of range')
        return c,w
    if name: raise ValueError('no such window')

def window_key(w): return hashlib.sha256(repr(w).encode()).hexdigest()[:12]

# A process of its own gives its memory back: torch and timm take hundreds of megabytes, and this server never needs them otherwise
_CAM = '''
import sys, warnings
warnings.simplefilter('ignore')
import numpy as np
from PIL import Image
from matplotlib import colormaps
from mednist_fastai.explain import explain
path,learner,label,out = sys.argv[1:]
e = explain(path, learner, label)
g = e.image if e.image.ndim==3 else np.repeat(e.image[...,None], 3, 2)
m = e.map[...,None]
a = g*(1-.5*m)+255*colormaps['inferno'](e.map)[...,:3]*.5*m
Image.fromarray(a.clip(0,255).astype(np.uint8)).resize((512,512), Image.Resampling.BICUBIC).save(out, 'PNG')
sys.exit(0 if e.map.any() else 3)
'''

class Cams:
    "Grad-CAM in a process of its own, one at a time; a view is made once"
    def __init__(self): self.pool,self.lock,self.busy = ThreadPoolExecutor(1, 'cam'),threading.Lock(),{}
    @staticmethod
    def possible(lf):
        "Is what it needs here, and has the learner layers to look into?"
        return lf.info.get('library')!='scikit-learn' and all(importlib.util.find_spec(o) for o in ('pytorch_grad_cam','torch','timm'))

    def state(self, at:Path):
        "'done', 'empty', 'failed', 'busy' or ''"
        for o in ('empty','failed'):
            if at.with_suffix(f'.{o}').exists(): return o
        if at.exists(): return 'done'
        with self.lock: return 'busy' if at in self.busy else ''

    def start(self, path, lf, label, at:Path):
        "Begin a view unless it is there or begun; False where too many wait"
        with self.lock:
            if at in self.busy or self.state_free(at): return True
            if len(self.busy)>=16: return False
            self.busy[at] = self.pool.submit(self._make, path, lf, label, at)
        return True

    def state_free(self, at): return at.exists() or at.with_suffix('.empty').exists()

    def _make(self, path, lf, label, at):
        new = at.with_suffix('.part')
        try:
            at.with_suffix('.failed').unlink(missing_ok=True)
            try: code = subprocess.run([sys.executable, '-c', _CAM, str(path), str(lf.path), label, str(new)], capture_output=True, timeout=180).returncode
            except subprocess.TimeoutExpired: code = 1
            if code==0: os.replace(new, at)
            elif at.parent.is_dir(): at.with_suffix('.empty' if code==3 else '.failed').touch()
        finally:
            new.unlink(missing_ok=True)
            with self.lock: self.busy.pop(at, None)

    def close(self): self.pool.shutdown(wait=True, cancel_futures=True)
