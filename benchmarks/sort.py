"""Sorting a folder, against what else there is for the same weights: ratios of runs made side by side.

    python benchmarks/sort.py --write nbs/experiments/records/07_sort.json      # about twelve minutes on two cores
    python benchmarks/sort.py --rounds 1 --files 200 --large 6                  # does it work?
    python benchmarks/sort.py --only cold memory --write RECORD.json            # these parts, again or as well; the others of the record stay

MedNIST's random test files are used where the environment variable MEDNIST_FASTAI_DATA names a folder that has them, else phantoms.
Every run is a fresh process, the peers by turns; a figure is the median of the rounds, a ratio the median of the rounds' ratios.
What a run does is in `peers.py`: the package's clock starts when `classify_folder` is called, that of the others when their model is loaded.
"""
import argparse, json, os, shutil, statistics, subprocess, sys, tempfile, time, warnings
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from itertools import count
from pathlib import Path

root = Path(__file__).resolve().parent.parent
PARTS = 'resnet34', 'ready', 'forward', 'cold', 'large', 'profile', 'memory'
SORTED = 'ResNet34, files in to files sorted and report out'
# measure, our run, the peer's, and what is asked of the ratio: at least, or for seconds at most
ROWS = dict(
    fastai=(SORTED, 'ours', 'fastai', 5), loop=(SORTED, 'ours', 'fastai_loop', 40),
    timm=(SORTED, 'ours', 'timm', 4), torch=(SORTED, 'ours', 'torch', 4),
    float32=(f'{SORTED}, float32 asked for', 'ours_float32', 'fastai', None),
    int8=(f'{SORTED}, int8 asked for', 'ours_int8', 'fastai', 5), int8_loop=(f'{SORTED}, int8 asked for', 'ours_int8', 'fastai_loop', 40),
    int8_timm=(f'{SORTED}, int8 asked for', 'ours_int8', 'timm', 4), int8_torch=(f'{SORTED}, int8 asked for', 'ours_int8', 'torch', 4),
    ready=('ready learner, files in to files sorted and report out', 'ready', 'fastai', 20),
    forward=('ResNet34, end to end', 'ours', 'forward', .8), ready_forward=('ready learner, end to end', 'ready', 'ready_forward', .8),
    cold=('cold start, 10 files, ResNet34', 'cold', 'fastai_cold', -.25), ready_cold=('cold start, 10 files, ready learner', 'ready_cold', 'fastai_cold', -.25),
    jpeg=('2,000 px JPEG', 'jpeg', 'fastai_jpeg', 3), dicom=('512 px DICOM', 'dicom', 'fastai_dicom', 3))
NAMES = dict(ours='classify_folder, ResNet34', ours_float32='classify_folder, ResNet34, float32', ours_int8='classify_folder, ResNet34, int8', ready='classify_folder, ready learner', fastai='fastai get_preds',
    fastai_loop='fastai predict, in a loop', timm='timm, folder inference', torch='torch DataLoader and loop', forward='engine alone, ResNet34', ready_forward='engine alone, ready learner',
    cold='mednist-sort, ResNet34', ready_cold='mednist-sort, ready learner', fastai_cold='load_learner and get_preds', jpeg='classify_folder, 2,000 px JPEG',
    fastai_jpeg='fastai get_preds, 2,000 px JPEG', dicom='classify_folder, 512 px DICOM', fastai_dicom='fastai get_preds, 512 px DICOM')

# --- files ---

def index(box, n):
    "(label, path, new name) of at most `n` images in class folders, and what they are; a name begins with the class and is nobody else's"
    if os.environ.get('MEDNIST_FASTAI_DATA'):
        from mednist_fastai.data import get_index, make_split
        df,what = make_split(get_index('mednist'), 'random', seed=0).query('split=="test"'),'MedNIST, test part of the random split, seed 0'
    else:
        from mednist_fastai.phantom import make_phantoms
        df,what = make_phantoms(box/'phantoms', n=min(983, n)),'phantoms: synthetic images, since MEDNIST_FASTAI_DATA names no data'
    step = max(1, -(-len(df)//n))
    return [(l,p,f'{l}_{i:06}{Path(p).suffix}') for i,(l,p) in enumerate(zip(df.label, df.path))][::step],what

def link(a, b):
    "`b` with the bytes of `a`, as a hard link where that can be"
    try: os.link(a, b)
    except OSError: shutil.copy2(a, b)

def gather(rows, to, n=None):
    "The files of `rows` in one folder, over and over until there are `n`"
    to.mkdir(parents=True)
    for i in range(n or len(rows)):
        _,p,name = rows[i%len(rows)]
        link(p, to/(name if i<len(rows) else f'{i//len(rows)}-{name}'))
    return to

def large_jpegs(rows, to, n, side=2000):
    "Images enlarged to about `side` pixels with noise, every other one in colour, quality 90"
    import numpy as np
    from PIL import Image
    to.mkdir(parents=True)
    noise = np.random.default_rng(0).normal(0, 5, (side,side+n)).astype(np.int16)
    def make(i):
        label,p,_ = rows[i*len(rows)//n]
        with Image.open(p) as im: a = np.asarray(im.convert('L').resize((side-10*(i%30),side), Image.Resampling.BICUBIC), np.int16)
        a = (a+noise[:,i:i+a.shape[1]]).clip(0, 255).astype(np.uint8)
        if i%2: a = np.stack([a, a, 255-(255-a)//8*7], -1) # bluish, as films on a light box are
        Image.fromarray(a).save(to/f'{label}_{i:06}.jpg', quality=90)
    with ThreadPoolExecutor(os.cpu_count()) as ex: list(ex.map(make, range(n)))
    return to

def dicoms(rows, to, n, side=512):
    "Uncompressed CT slices with slope, intercept and window"
    import numpy as np
    from PIL import Image
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid
    to.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i in range(n):
        label,p,_ = rows[i*len(rows)//n]
        with Image.open(p) as im: a = np.asarray(im.convert('L').resize((side,side), Image.Resampling.BICUBIC), np.float32)
        ds = Dataset()
        ds.file_meta = FileMetaDataset()
        ds.file_meta.TransferSyntaxUID,ds.file_meta.MediaStorageSOPClassUID,ds.file_meta.MediaStorageSOPInstanceUID = ExplicitVRLittleEndian,CTImageStorage,generate_uid()
        ds.SOPClassUID,ds.SOPInstanceUID,ds.Modality,ds.PatientName,ds.PatientID = CTImageStorage,ds.file_meta.MediaStorageSOPInstanceUID,'CT','Nobody','0'
        ds.Rows = ds.Columns = side
        ds.SamplesPerPixel,ds.PhotometricInterpretation,ds.BitsAllocated,ds.BitsStored,ds.HighBit,ds.PixelRepresentation = 1,'MONOCHROME2',16,16,15,0
        ds.RescaleSlope,ds.RescaleIntercept,ds.WindowCenter,ds.WindowWidth = 1,-1024,40,400
        ds.PixelData = (a/255*400-160+1024+rng.normal(0, 8, a.shape)).clip(0, 4095).astype('<u2').tobytes()
        ds.save_as(to/f'{label}_{i:06}.dcm', enforce_file_format=True)
    return to

def untrained(rows, to):
    "A ResNet34 that has learned nothing, where there is no trained one: as fast, and no more"
    import pandas as pd
    from mednist_fastai.blocks import index_dls
    from mednist_fastai.learner import save_learner
    from mednist_fastai.train import timm_learner
    df = pd.DataFrame([dict(path=str(p), label=l, split=s, group='', source='untrained') for l,p,_ in rows[::max(1, len(rows)//60)] for s in ('train','valid')])
    save_learner(timm_learner(index_dls(df, bs=16)), to)
    return to

def warm(*folders):
    "Read all files once, so that the page cache has them"
    for f in folders:
        for o in f.iterdir(): o.read_bytes()

# --- processes ---

class Runner:
    "Runs in processes of their own, each with a new folder to write to"
    def __init__(self, box): self.box,self.i = box,count()
    def dst(self):
        # always a new one, and none deleted before the end: ext4 avoids inodes that were freed a moment ago, so that
        # creating thousands of files right after deleting thousands is several times slower, whoever does it
        return str(self.box/'out'/str(next(self.i)))

    def jobs(self, *jobs):
        "Results of `jobs`, (name of the run, arguments), one after another in one fresh process"
        job,out = (self.box/f'{o}{next(self.i)}.json' for o in ('jobs','results'))
        job.write_text(json.dumps([(f,{k:str(v) if isinstance(v, Path) else v for k,v in kw.items()}) for f,kw in jobs]))
        p = subprocess.run([sys.executable, '-W', 'ignore', __file__, '--jobs', str(job), str(out)], capture_output=True, text=True)
        if p.returncode: sys.exit(f'{[f for f,_ in jobs]} failed\n{p.stderr[-3000:]}')
        return json.loads(out.read_text())

    def command(self, *args, watch=False):
        "Seconds from the start of a process to its exit, and where `watch` its peak memory in MiB"
        start = time.perf_counter()
        with tempfile.TemporaryFile('w+') as err:
            p = subprocess.Popen([*map(str, args)], stdout=subprocess.DEVNULL, stderr=err)
            code,peak = wait(p, watch)
            seconds = time.perf_counter()-start
            if code: err.seek(0); sys.exit(f'{args[0]} failed\n{err.read()[-3000:]}')
        return dict(files=10, seconds=seconds, peak_mib=peak)

def wait(p, watch):
    "Exit code of a process, and its peak memory, asked for while it lives: what Linux says at its end also counts what its parent had"
    peak = None
    while watch and p.poll() is None:
        with open(f'/proc/{p.pid}/status') as f: peak = next((int(o.split()[1])/2**10 for o in f if o.startswith('VmHWM')), peak) # none any more when it has just ended
        time.sleep(.01)
    return p.wait(),peak

def run_jobs(job, out):
    "The other side of `Runner.jobs`"
    import peers
    res = [peers.RUNS[f](**kw) for f,kw in json.loads(Path(job).read_text())]
    Path(out).write_text(json.dumps(res))

SORT = Path(sys.executable).with_name('mednist-sort')
LOAD = '''import sys; from pathlib import Path; from fastai.learner import load_learner
learn = load_learner(sys.argv[1])
with learn.no_bar(), learn.no_logging(): probs,_ = learn.get_preds(dl=learn.dls.test_dl(sorted(Path(sys.argv[2]).iterdir()), bs=64, num_workers=0))
print([learn.dls.vocab[i] for i in probs.argmax(1)])'''

# --- measuring ---

class Bench:
    def __init__(self, args, box):
        self.args,self.run,self.box,self.parts = args,Runner(box),box,args.only
        self.rows,self.data = index(box, args.files)
        self.src = gather(self.rows, box/'src')
        self.trained = (args.resnet34/'config.json').exists()
        self.net = args.resnet34.resolve() if self.trained else untrained(self.rows, box/'untrained')
        from mednist_fastai.engines import supported
        from mednist_fastai.learner import open_learner
        self.able = [o for o in open_learner(self.net).precisions if o in supported()] # what the learner's check accepted and this machine has
        self.got,self.folders = {},[self.src]
        self.some = gather(self.rows[::-(-len(self.rows)//args.slow)], box/'some') if args.slow<len(self.rows) else self.src
        if 'large' in self.parts: self.folders += [large_jpegs(self.rows, box/'jpeg', args.large), dicoms(self.rows, box/'dicom', args.large)]
        self.image,self.dicom = box/'image.pkl',box/'dicom.pkl'
        self.run.jobs(('export', dict(learner=self.net, paths=[p for _,p,_ in self.rows[::max(1, len(self.rows)//60)]], to=self.image)))
        if 'large' in self.parts: self.run.jobs(('export', dict(learner=self.net, paths=[str(o) for o in self.folders[2].iterdir()][:60], to=self.dicom, dicom=True)))

    def keep(self, name, res): self.got.setdefault(name, []).append(res)

    def jobs(self, **jobs):
        "Run and keep; a job is (name of the run, arguments)"
        for name,res in zip(jobs, self.run.jobs(*jobs.values())): self.keep(name, res)

    def ours(self, name, learner, src=None, **kw): self.jobs(**{name:('ours', dict(src=src or self.src, dst=self.run.dst(), learner=learner, **kw))})

    def best_workers(self):
        "Has fastai's loader more from two processes than from none? Asked once, on a part of the files"
        few = gather(self.rows[::max(1, len(self.rows)//1280)], self.box/'few')
        got = {w:self.run.jobs(('fastai_preds', dict(src=few, export=self.image, workers=w)))[0] for w in (0,2)}
        self.workers_tried = {str(w):rate(o) for w,o in got.items()}
        return max(got, key=lambda w: rate(got[w]))

    def round(self, workers):
        warm(*self.folders)
        a,on,fast = self.args,self.parts.__contains__,dict(export=self.image, workers=workers)
        if on('resnet34') or on('ready') or on('forward'):
            if on('resnet34') or on('forward'): self.ours('ours', self.net)
            if on('ready') or on('forward'): self.ours('ready', None)
        if on('forward'):
            self.jobs(forward=('forward', dict(files=len(self.rows), learner=self.net)))
            self.jobs(ready_forward=('forward', dict(files=4*len(self.rows), learner=None)))
        if on('resnet34') or on('ready'):
            loop = dict(fastai_loop=('fastai_loop', dict(src=self.src, export=self.image, files=a.loop))) if on('resnet34') else {}
            self.jobs(fastai=('fastai_preds', dict(src=self.src, **fast)), **loop)
        if on('resnet34'):
            self.ours('ours_float32', self.net, self.some, precision='float32', again=False)
            if 'int8' in self.able: self.ours('ours_int8', self.net, precision='int8')
            self.jobs(timm=('timm_folder', dict(src=self.some, learner=self.net)))
            self.jobs(torch=('torch_loop', dict(src=self.some, learner=self.net)))
        if on('large'): self.round_large(fast)
        if on('cold'): self.round_cold()

    def round_large(self, fast):
        jpeg,dicom = self.folders[1:]
        self.ours('jpeg', self.net, jpeg)
        self.ours('dicom', self.net, dicom)
        self.jobs(fastai_jpeg=('fastai_preds', dict(src=jpeg, **fast)), fastai_dicom=('fastai_preds', dict(src=dicom, **fast | dict(export=self.dicom))))

    def round_cold(self):
        ten = self.box/'ten'
        if not ten.exists(): gather(self.rows[::max(1, len(self.rows)//10)][:10], ten)
        self.keep('cold', self.run.command(SORT, ten, self.run.dst(), self.net, '--quiet'))
        self.keep('ready_cold', self.run.command(SORT, ten, self.run.dst(), '--quiet'))
        self.keep('fastai_cold', self.run.command(sys.executable, '-W', 'ignore', '-c', LOAD, self.image, ten))

    def memory(self):
        "Peak memory of `mednist-sort` with the ready learner on few and on many files; only Linux can be asked"
        res = {}
        for k,n in dict(small=6000, large=self.args.many).items():
            src = gather(self.rows, self.box/f'memory-{k}', n)
            got = self.run.command(SORT, src, self.run.dst(), '--quiet', watch=True)
            res[k] = dict(files=n, seconds=round(got['seconds'], 1), peak_mib=round(got['peak_mib'], 1))
        more = res['large']['peak_mib']-res['small']['peak_mib']
        return res | dict(more_mib=round(more, 1), target_mib=50, met=more<=50)

    def profiles(self):
        "Where the time goes, of the middle one of three runs"
        def one(learner): return self.run.jobs(('profile', dict(src=self.src, dst=self.run.dst(), learner=learner)))[0]
        def middle(learner): return sorted((one(learner) for _ in range(min(3, self.args.rounds))), key=rate)[min(3, self.args.rounds)//2]
        return {k:rounded(middle(l)) for k,l in dict(resnet34=self.net, ready=None).items()}

def rate(o): return o['files']/o['seconds']
def rounded(o): return {k:rounded(v) for k,v in o.items()} if isinstance(o, dict) else float(f'{o:.5g}') if isinstance(o, float) else o
def same_or_close(a, b, close=.02):
    "How many labels of two runs differ, of how many, and how many of these are not near ties in the second"
    pa,pb = (dict(zip(o['names'], o['probs'])) for o in (a,b))
    def top(p): return max(range(len(p)), key=p.__getitem__)
    differ = [k for k in pb if top(pa[k])!=top(pb[k])]
    return dict(labels_differ=len(differ), of=len(pb), not_close=sum(sorted(pb[k])[-1]-sorted(pb[k])[-2]>=close for k in differ))

def wrong(o, labels):
    "How many files have another label than the class that their names begin with"
    return sum(labels[max(range(len(p)), key=p.__getitem__)]!=n.rsplit('_', 1)[0] for n,p in zip(o['names'], o['probs']))

SAME = dict(fastai='ours', fastai_loop='ours', timm='ours', torch='ours', ours_float32='ours', ours_int8='ours', fastai_jpeg='jpeg', fastai_dicom='dicom') # peers of the same weights on the same files

def summary(name, got, labels, others):
    "What the record keeps of one run: all rounds, and the first one's labels"
    o = got[0]
    cold = name.endswith('cold')
    res = dict(what=NAMES[name], files=o['files'], unit='s' if cold else 'images/s', rounds=[r['seconds'] if cold else rate(r) for r in got])
    res['value'] = statistics.median(res['rounds'])
    if 'seconds_again' in o: res['again'] = statistics.median(r['files']/r['seconds_again'] for r in got)
    res |= {k:o[k] for k in ('engine','precision','workers','batch_size') if k in o}
    if 'probs' in o: res['wrong'] = wrong(o, labels)
    if SAME.get(name) in others: res['against_ours'] = same_or_close(others[SAME[name]][0], o)
    return rounded(res)

def table(runs):
    "The rows whose two runs are there"
    res = {}
    for k,(measure,a,b,target) in ROWS.items():
        if a not in runs or b not in runs: continue
        ratios = [x/y for x,y in zip(runs[a]['rounds'], runs[b]['rounds'])]
        ratio = statistics.median(ratios)
        met = None if target is None else ratio<=-target if target<0 else ratio>=target
        res[k] = rounded(dict(measure=measure, ours=a, peer=b, value=runs[a]['value'], peer_value=runs[b]['value'], unit=runs[a]['unit'], ratio=ratio, ratios=ratios,
                              target=target and abs(target), at_most=bool(target and target<0), met=met))
    return res

def show(record):
    for r in record['table'].values():
        goal = '' if r['target'] is None else f"{'at most' if r['at_most'] else 'at least'} {r['target']:g}: {'met' if r['met'] else 'NOT met'}"
        print(f"{r['measure']:70} {r['value']:>9,.5g} {r['unit']:8} against {r['peer_value']:>9,.5g} of {NAMES[r['peer']]:32} x {r['ratio']:<7.3g} {goal}")
    for k,p in record.get('profile', {}).items():
        print(f"{k}: {p['run']['wall_us']:.0f} us an image, limit {p['limit_us']:.0f} us on {p['cores']} cores, {p['share_of_limit']:.0%} of it")
        if p['not_found']: print(f"  not timed, since this version has no {', '.join(p['not_found'])}")
    for k,o in record['runs'].items():
        if d := o.get('against_ours'): print(f"{o['what']}: {d['labels_differ']} of {d['of']:,} labels differ from ours, {d['not_close']} of them not near ties")
    if m := record.get('memory'): print(f"peak memory: {m['small']['peak_mib']} MiB for {m['small']['files']:,} files, {m['large']['peak_mib']} for {m['large']['files']:,}")

def settings(b, args):
    "What a record is made with; its parts must agree in it"
    from mednist_fastai.learner import open_learner
    lfs = dict(resnet34=open_learner(b.net), ready=open_learner(None))
    return dict(data=b.data, files=len(b.rows), rounds=args.rounds, large=args.large, resnet34='trained' if b.trained else 'untrained',
                learners={k:o.digest for k,o in lfs.items()},
                precisions={k:o.info.get('precisions') for k,o in lfs.items()}) # what the check of each learner found when it was saved

def check_same(old, new):
    for k in new:
        if old.get(k)!=new[k]: sys.exit(f'the record was made with {k} {old.get(k)}, this run with {new[k]}: write another file, or measure all parts')

def measure(args, box, old):
    "All that was asked for, and what of the record `old` was not"
    from mednist_fastai.learner import open_learner
    b = Bench(args, box)
    how = settings(b, args)
    if old: check_same(old, how)
    labels,rounds = open_learner(b.net).labels,args.only-{'profile','memory'}
    workers = b.best_workers() if rounds & {'resnet34','ready','large'} else 0
    for i in range(args.rounds if rounds else 0):
        start = time.perf_counter()
        b.round(workers)
        print(f'round {i+1} of {args.rounds}: {time.perf_counter()-start:.0f} s', file=sys.stderr, flush=True)
    res = dict(runs=old.get('runs', {}) | {k:summary(k, v, labels, b.got) for k,v in b.got.items()})
    if hasattr(b, 'workers_tried'): res['fastai_workers'] = rounded(b.workers_tried)
    if 'memory' in args.only: res['memory'] = b.memory()
    if 'profile' in args.only: res['profile'] = b.profiles()
    from mednist_fastai.train import machine, versions
    about = dict(what=__doc__.splitlines()[0], **how, machine=machine(), versions=versions(*['openvino']*(find_spec('openvino') is not None)))
    if old: check_same(old, dict(machine=about['machine']))
    return old | about | res | dict(table=table(res['runs']))

def main():
    warnings.filterwarnings('ignore') # of torch, to the authors of packages
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--rounds', type=int, default=5); p.add_argument('--write', type=Path, help='the record; with --only its other parts stay')
    p.add_argument('--only', nargs='+', choices=PARTS, metavar='NAME', help=f'parts to measure, of {", ".join(PARTS)}; all but memory by default')
    p.add_argument('--memory', action='store_true', help='also peak memory on 200,000 files: some minutes more')
    p.add_argument('--resnet34', type=Path, default=root/'runs/mednist-resnet34/learner', help='learner folder of a ResNet34')
    p.add_argument('--files', type=int, default=6000, help='at most so many files'); p.add_argument('--large', type=int, default=600, help='files of 2,000 px, and DICOM files')
    p.add_argument('--loop', type=int, default=100, help='files for the loop of `predict`')
    p.add_argument('--slow', type=int, default=3000, help='at most so many files for timm, plain torch and ours in float32, which would take half of the time')
    p.add_argument('--many', type=int, default=200_000, help='files for the peak memory, against 6,000')
    p.add_argument('--jobs', nargs=2, help=argparse.SUPPRESS)
    args = p.parse_args()
    if args.jobs: return run_jobs(*args.jobs)
    args.only = set(args.only or PARTS[:-1]) | ({'memory'} if args.memory else set())
    add = args.write and args.write.exists() and not args.only >= set(PARTS[:-1])
    with tempfile.TemporaryDirectory(prefix='bench-sort-') as box: record = measure(args, Path(box), json.loads(args.write.read_text(encoding='utf-8')) if add else {})
    show(record)
    if args.write: args.write.write_text(json.dumps(record, indent=1)+'\n', encoding='utf-8')

if __name__=='__main__': main()
