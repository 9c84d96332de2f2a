"""How fast the package feeds a training, against fastai's plain pipeline: images a second through real optimisation steps, and ratios.

    python benchmarks/feed.py --write nbs/experiments/records/07_feed.json      # about three minutes on two cores
    python benchmarks/feed.py --rounds 1 --steps 2 --files 300                  # does it work?

One process, all ways by turns, one thing changed from each to the next, so that a ratio can be taken apart: what the loader is worth, what
the memory format, what bfloat16. Network, batches, images and augmentation are the same in all of them. MedNIST's random training files are used where the
environment variable MEDNIST_FASTAI_DATA names a folder that has them, else phantoms. On a GPU where there is one.
"""
import argparse, json, os, statistics, tempfile, time, warnings
from functools import partial
from pathlib import Path

SIZE,BS,POLICY,ARCH = 64,64,'radiograph','resnet34'
NAMES = {'fastai':'fastai, files opened each time', 'fastai, workers':'fastai, files opened by worker processes', 'cache':'the decoded cache', 'cache, channels last':'+ channels-last memory format',
    'package':'+ bfloat16 where the processor has it: timm_learner as it comes'}

def data(box, n):
    "At most `n` train images, with a few to validate on, and what they are"
    from mednist_fastai.data import get_index, make_split
    if os.environ.get('MEDNIST_FASTAI_DATA'): df,what = get_index('mednist'),'MedNIST, train part of the random split, seed 0'
    else:
        from mednist_fastai.phantom import make_phantoms
        df,what = make_phantoms(box/'phantoms', n=500),'phantoms: synthetic images, since MEDNIST_FASTAI_DATA names no data'
    df = make_split(df, 'random', seed=0)
    train = df[df.split=='train'].sample(frac=1, random_state=0).head(n)
    return df.loc[sorted([*train.index, *df[df.split=='valid'].groupby('label').head(4).index])].reset_index(drop=True),what

def plain(df, workers):
    "fastai's own blocks on the files, with the package's augmentation: fastai's transforms, and fastai's normalisation"
    from fastai.vision.all import CategoryBlock, ColReader, ColSplitter, DataBlock, ImageBlock, Normalize, PILImageBW, Resize
    from mednist_fastai.augment import policy_tfms
    from mednist_fastai.blocks import default_stats
    block = DataBlock(blocks=(ImageBlock(PILImageBW), CategoryBlock), get_x=ColReader('path'), get_y=ColReader('label'), splitter=ColSplitter('valid'), item_tfms=Resize(SIZE, 'squash'),
                      batch_tfms=[*policy_tfms(POLICY), Normalize.from_stats(*default_stats('L'))])
    return block.dataloaders(df.assign(valid=df.split=='valid'), bs=BS, num_workers=workers)

def learners(df, box):
    "One `Learner` for each way; the plain one is what timm and fastai give without the package"
    import timm
    from fastai.learner import Learner
    from fastai.losses import CrossEntropyLossFlat
    from mednist_fastai.blocks import index_dls, pixel_cache
    from mednist_fastai.train import timm_learner
    cache = pixel_cache(df, SIZE, folder=box)
    def ours(**kw): return timm_learner(index_dls(df, SIZE, BS, POLICY, cache=cache), ARCH, **kw)
    def fastai(workers):
        dls = plain(df, workers)
        return Learner(dls, timm.create_model(ARCH, in_chans=1, num_classes=len(dls.vocab)), loss_func=CrossEntropyLossFlat())
    workers = min(8, os.cpu_count())
    return {'fastai':fastai(0), 'fastai, workers':fastai(workers), 'cache':ours(bf16=False, channels_last=False), 'cache, channels last':ours(bf16=False), 'package':ours()}, workers

def stepper(skip, steps):
    "A callback that stops after `skip+steps` batches and times the last `steps`"
    import torch
    from fastai.callback.core import Callback, CancelFitException
    def now():
        if torch.cuda.is_available(): torch.cuda.synchronize() # kernels are started, and waited for only when asked
        return time.perf_counter()
    class Steps(Callback):
        order = 100
        def before_fit(self): self.n = self.i = 0
        def after_batch(self):
            self.i += 1
            if self.i==skip: self.start = now()
            elif self.i>skip: self.n += len(self.yb[0])
            if self.i==skip+steps:
                self.rate = self.n/(now()-self.start)
                raise CancelFitException()
    return Steps()

def train_rate(learn, skip, steps):
    cb = stepper(skip, steps)
    with learn.no_bar(), learn.no_logging(): learn.fit(1, 1e-3, cbs=cb)
    return cb.rate

def load_rate(dl):
    "Images a second of a pass over a loader, augmentation included, no network"
    n,start = 0,time.perf_counter()
    for x,_ in dl: n += len(x)
    if x.is_cuda: import torch; torch.cuda.synchronize()
    return n/(time.perf_counter()-start)

def measure(args, box):
    import torch
    from fastai.torch_core import default_device
    df,what = data(box, args.files)
    cuda = default_device().type=='cuda'
    steps = args.steps or (60 if cuda else 8)
    ways,workers = learners(df, box)
    kinds = dict(training=partial(train_rate, skip=2, steps=steps), loading=lambda learn: load_rate(learn.dls.train))
    got = {k:{w:[] for w in ways if k=='training' or w in ('fastai','fastai, workers','cache')} for k in kinds}
    for w in ways: kinds['training'](ways[w]) # memory, kernels and the like, once
    for i in range(args.rounds):
        for k,f in kinds.items():
            for w in got[k]: got[k][w].append(f(ways[w]))
    return got,dict(data=what, files=int((df.split=='train').sum()), rounds=args.rounds, steps=steps, batch=BS, size=SIZE, arch=ARCH, policy=POLICY, workers=workers,
                    device='cuda' if cuda else 'cpu', bfloat16=bf16(ways['package']), threads=torch.get_num_threads())

def bf16(learn):
    from mednist_fastai.train import bf16_helps
    return bf16_helps(learn.dls.device)

def summary(got, target):
    "Medians, and ratios to the better of fastai's two ways, round by round"
    res = {}
    for kind,ways in got.items():
        mid = {w:statistics.median(v) for w,v in ways.items()}
        base = max(('fastai','fastai, workers'), key=mid.get)
        ratio = {w:statistics.median(a/b for a,b in zip(v, ways[base])) for w,v in ways.items()}
        res[kind] = dict(peer=base, ways={w:dict(what=NAMES[w], value=round(mid[w], 1), ratio=round(ratio[w], 3), rounds=[round(o, 1) for o in v]) for w,v in ways.items()})
    ratio = res['training']['ways']['package']['ratio']
    return res | dict(ratio=ratio, target=target, met=ratio>=target)

def main():
    warnings.filterwarnings('ignore')
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--rounds', type=int, default=5); p.add_argument('--steps', type=int, help='timed optimisation steps of one turn; 8, and 60 on a GPU')
    p.add_argument('--files', type=int, default=4000, help='at most so many train images'); p.add_argument('--write', type=Path)
    args = p.parse_args()
    with tempfile.TemporaryDirectory(prefix='bench-feed-') as box: got,how = measure(args, Path(box))
    from mednist_fastai.train import machine, versions
    record = dict(what=__doc__.splitlines()[0], **how, machine=machine(), versions=versions(), **summary(got, 1.8))
    for kind in 'training','loading':
        for o in record[kind]['ways'].values(): print(f"{kind:9} {o['what']:68} {o['value']:>9,.0f} images/s   x {o['ratio']:.2f}")
    print(f"{record['ratio']:.2f} times fastai's training throughput; at least {record['target']}: {'met' if record['met'] else 'NOT met'}")
    if args.write: args.write.write_text(json.dumps(record, indent=1)+'\n', encoding='utf-8')

if __name__=='__main__': main()
