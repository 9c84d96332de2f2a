"""The runs that `sort.py` compares: what the package does with a folder of files, and what others do with the same files and weights.

Each function is one run. It returns how many `files` took how many `seconds`, and where there are labels to compare, the `names` of the
files and their `probs`. `sort.py` calls them in fresh processes; heavy libraries are imported before the clock starts.
"""
import os, stat, time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
import numpy as np

def listing(src): return sorted(Path(src).iterdir())
def clocks(): return time.perf_counter(),time.process_time()
def since(start): return tuple(b-a for a,b in zip(start, clocks()))
def result(start, names, probs):
    "A run that began at `start` and has just ended"
    seconds,cpu = since(start)
    return dict(files=len(names), seconds=seconds, cpu_seconds=cpu, names=[Path(o).name for o in names], probs=np.asarray(probs, np.float32).tolist())

# --- the package ---

def ours(src, dst, learner=None, precision=None, again=True):
    "From the call of `classify_folder` to its return, opening the learner and starting the engine included; and once more in the same process"
    import openvino, pandas # as torch and fastai are imported before the clock of the others starts
    from mednist_fastai.infer import Predictor
    from mednist_fastai.sort import classify_folder
    kw = dict(precision=precision)
    start = clocks()
    df = classify_folder(src, Path(dst)/'first', learner, progress=False, **kw)
    res = result(start, df.path, df[[o for o in df if o.startswith('p_')]])
    assert df.status.isin(['sorted','review']).all(), df.status.value_counts() # what the learner isn't sure of is copied, too
    res['review'] = int((df.status=='review').sum())
    if again:
        start = clocks()
        classify_folder(src, Path(dst)/'second', learner, progress=False, **kw)
        res['seconds_again'] = since(start)[0]
    p = Predictor(learner, **kw)
    return res | dict(engine=p.engine.name, precision=p.precision, batch_size=p.batch_size)

class at_once:
    "An engine on so many batches at once as the package runs, `times` times before the threads wait for each other"
    def __init__(self, engine, times=1):
        from mednist_fastai.engines import STREAMS
        self.runs,self.pool,self.times,self.batches = [engine.runner()[0] for _ in range(STREAMS)],ThreadPoolExecutor(STREAMS),times,STREAMS*times
    def __call__(self, x):
        def one(run):
            for _ in range(self.times): res = run(x)
            return res
        return list(self.pool.map(one, self.runs))[0]

def forward(files, learner=None, precision=None):
    "The engine on pixels that are in memory already"
    from mednist_fastai.infer import Predictor
    p = Predictor(learner, precision=precision)
    lf,rng = p.learner,np.random.default_rng(0)
    x = rng.integers(0, 256, (p.batch_size,lf.channels,lf.size,lf.size), dtype=np.uint8)
    run = at_once(p.engine, 20)
    run(x)
    start,n = clocks(),0
    while n*len(x)<files: run(x); n += run.batches
    seconds,cpu = since(start)
    return dict(files=n*len(x), seconds=seconds, cpu_seconds=cpu)

# --- fastai ---

def open_dicom(path):
    "Slope, intercept and window of a CT slice, as `fastai.medical.imaging` does it; that module itself needs kornia and scikit-image"
    from fastai.vision.core import PILImageBW
    from pydicom import dcmread
    ds = dcmread(path)
    hu = ds.pixel_array.astype(np.float32)*float(ds.RescaleSlope)+float(ds.RescaleIntercept)
    grey = (hu-ds.WindowCenter)/ds.WindowWidth+.5
    return PILImageBW.create((grey.clip(0, 1)*255).astype(np.uint8))

def class_of(path): return Path(path).name.rsplit('_', 1)[0]

def export(learner, paths, to, dicom=False):
    "The learner's weights in a fastai `Learner` on fastai's own blocks, exported; images lie in class folders, DICOM files have their class in their name"
    import timm
    from fastai.vision.all import (CategoryBlock, CrossEntropyLossFlat, DataBlock, ImageBlock, IntToFloatTensor, Learner, Normalize, PILImage,
                                   PILImageBW, Resize, TransformBlock, parent_label)
    from mednist_fastai.learner import open_learner
    lf = open_learner(learner)
    p = lf.config['mednist_fastai']['preprocessing']
    block = TransformBlock(type_tfms=open_dicom, batch_tfms=IntToFloatTensor) if dicom else ImageBlock(PILImageBW if lf.mode=='L' else PILImage)
    data = DataBlock(blocks=(block, CategoryBlock(vocab=lf.labels)), get_y=class_of if dicom else parent_label, item_tfms=Resize(lf.size, lf.method),
                     batch_tfms=Normalize.from_stats(p['mean'], p['std'], cuda=False))
    model = timm.create_model(f'local-dir:{lf.path}', pretrained=True)
    Learner(data.dataloaders([Path(o) for o in paths], bs=8), model, loss_func=CrossEntropyLossFlat()).export(to)
    return dict(files=len(paths), seconds=0.)

def fastai_preds(src, export, workers=0, bs=64):
    "`get_preds` on a `test_dl` of the files"
    from fastai.learner import load_learner
    learn,files = load_learner(export),listing(src)
    start = clocks()
    with learn.no_bar(), learn.no_logging(): probs,_ = learn.get_preds(dl=learn.dls.test_dl(files, bs=bs, num_workers=workers))
    return result(start, files, probs) | dict(workers=workers, batch_size=bs)

def fastai_loop(src, export, files):
    "`predict`, file by file"
    from fastai.learner import load_learner
    learn,names = load_learner(export),listing(src)
    names = names[::max(1, len(names)//files)][:files]
    start = clocks()
    with learn.no_bar(), learn.no_logging(): probs = [learn.predict(o)[2].numpy() for o in names]
    return result(start, names, probs)

# --- timm, and torch by itself ---

def timm_folder(src, learner, workers=2, bs=64):
    "timm's data set of a folder and its loader"
    import timm, torch
    from timm.data import create_dataset, create_loader, resolve_data_config
    model = timm.create_model(f'local-dir:{learner}', pretrained=True).eval()
    cfg = resolve_data_config({}, model=model)
    start = clocks()
    data = create_dataset('', root=str(src), input_img_mode='L' if cfg['input_size'][0]==1 else 'RGB')
    loader = create_loader(data, batch_size=bs, num_workers=workers, device=torch.device('cpu'), **cfg)
    with torch.inference_mode(): probs = torch.cat([model(x).softmax(1) for x,_ in loader]).numpy()
    return result(start, data.filenames(basename=True), probs) | dict(workers=workers, batch_size=bs)

class Pixels:
    "Files as uint8 (C,size,size)"
    def __init__(self, files, size, mode): self.files,self.size,self.mode = files,size,mode
    def __len__(self): return len(self.files)
    def __getitem__(self, i):
        from PIL import Image
        with Image.open(self.files[i]) as im: a = np.array(im.convert(self.mode).resize((self.size,)*2, Image.Resampling.BILINEAR))
        return a[None] if a.ndim==2 else a.transpose(2,0,1)

def torch_loop(src, learner, workers=2, bs=64):
    "A `DataLoader` and a loop"
    import timm, torch
    from mednist_fastai.learner import open_learner
    lf,model = open_learner(learner),timm.create_model(f'local-dir:{learner}', pretrained=True).eval()
    mean,std = (torch.tensor(lf.config['mednist_fastai']['preprocessing'][o])[:,None,None] for o in ('mean','std'))
    start = clocks()
    files = listing(src)
    loader = torch.utils.data.DataLoader(Pixels(files, lf.size, lf.mode), batch_size=bs, num_workers=workers)
    with torch.inference_mode(): probs = torch.cat([model((x.float()/255-mean)/std).softmax(1) for x in loader]).numpy()
    return result(start, files, probs) | dict(workers=workers, batch_size=bs)

# --- where the time goes ---

def copy_all(files, to):
    "The system calls that a copy needs which is never seen half done, and nothing else"
    os.makedirs(to/'tmp')
    for i,f in enumerate(files):
        fd = os.open(f, os.O_RDONLY)
        s,b = os.fstat(fd),os.read(fd, 1<<26)
        os.close(fd)
        tmp = to/'tmp'/str(i)
        g = os.open(tmp, os.O_WRONLY|os.O_CREAT|os.O_EXCL, stat.S_IMODE(s.st_mode))
        os.write(g, b)
        os.utime(g if os.utime in os.supports_fd else tmp, ns=(s.st_atime_ns, s.st_mtime_ns))
        os.close(g)
        os.rename(tmp, to/f.name)

# what is timed inside a run: stage -> (module, dotted name), each in whatever thread it runs
STAGES = {'opening the learner': [('sort','open_learner')], 'starting the engine': [('sort','Predictor.__init__')], 'finding the files': [('sort','_Run.look')],
    'waiting for the network': [('infer','Predictor.predict')], 'decisions, digests': [('sort','_Run.decide')], 'journal': [('sort','_Journal.plan'), ('sort','_Journal.finish')],
    'placing': [('sort','_Placer.place')], 'report': [('sort','_Run.report')], 'counts': [('sort','_Run.counts')],
    'reading the report back': [('sort','read_report')]}
BESIDE = ['placing'] # these are done while the main thread is at others

class Timed:
    "Calls of one function, and of what it returns where that is an iterator: seconds on the clock and of the processor, in this thread"
    def __init__(self, f): self.f,self.wall,self.cpu,self.calls = f,0.,0.,0
    def add(self, f, *args, **kw):
        w,c = time.perf_counter(),time.thread_time()
        try: return f(*args, **kw)
        finally: self.wall += time.perf_counter()-w; self.cpu += time.thread_time()-c; self.calls += 1
    def each(self, it):
        try:
            while True: yield self.add(next, it)
        except StopIteration: return
        finally: it.close()
    def wrapped(self):
        def f(*args, **kw):
            res = self.add(self.f, *args, **kw)
            return self.each(res) if hasattr(res, '__next__') else res
        return f

def watch(stages):
    "Time the functions of `stages` from now on; returns stage -> list of `Timed`, and the names that this version hasn't"
    from importlib import import_module
    found,missing = {},[]
    for stage,names in stages.items():
        for module,name in names:
            at,*rest = import_module(f'mednist_fastai.{module}'),*name.split('.')
            for o in rest[:-1]: at = getattr(at, o, None)
            f = getattr(at, rest[-1], None)
            if f is None: missing.append(f'{module}.{name}'); continue
            found.setdefault(stage, []).append(Timed(f))
            setattr(at, rest[-1], found[stage][-1].wrapped())
    return found,missing

def profile(src, dst, learner=None):
    "Stages of a run, and what decoding, network and copying cost by themselves; microseconds an image"
    from mednist_fastai.images import load_image
    from mednist_fastai.engines import cores
    from mednist_fastai.infer import Predictor
    from mednist_fastai.sort import classify_folder
    files,dst = listing(src),Path(dst)
    n,us,res = len(files),1e6/len(files),{}
    p = Predictor(learner)
    run,lf = at_once(p.engine, 10),p.learner
    x = np.random.default_rng(0).integers(0, 256, (p.batch_size,lf.channels,lf.size,lf.size), dtype=np.uint8)
    run(x) # sets the engine up
    def alone(f, n=n):
        "Microseconds an image of `f`, which handles `n`"
        start = clocks()
        f()
        wall,cpu = since(start)
        return dict(wall_us=wall*1e6/n, cpu_us=cpu*1e6/n)
    calls = -(-n//(run.batches*len(x)))
    res['alone'] = dict(decode=alone(lambda: [load_image(o, lf.size, method=lf.method, mode=lf.mode) for o in files]),
                        forward=alone(lambda: [run(x) for _ in range(calls)], calls*run.batches*len(x)),
                        copy=alone(lambda: copy_all(files, dst/'alone')))
    classify_folder(src, dst/'warm', learner, progress=False) # imports and the like, which are the cold start's
    found,res['not_found'] = watch(STAGES)
    res['run'] = alone(lambda: classify_folder(src, dst/'sorted', learner, progress=False))
    res['stages'] = {k:dict(wall_us=us*sum(o.wall for o in v), cpu_us=us*sum(o.cpu for o in v), calls=sum(o.calls for o in v)) for k,v in found.items()}
    a,res['beside'] = res['alone'],BESIDE
    limit = a['forward']['wall_us'] + (a['decode']['cpu_us']+a['copy']['cpu_us'])/cores()
    return res | dict(files=n, seconds=res['run']['wall_us']*n/1e6, cores=cores(), limit_us=limit, share_of_limit=limit/res['run']['wall_us'])

RUNS = {f.__name__:f for f in (ours, forward, export, fastai_preds, fastai_loop, timm_folder, torch_loop, profile)}
