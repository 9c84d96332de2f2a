"""How fast the networks of study 02 run forward: every finished learner in one process, in turns, on pixels in memory.

    python benchmarks/networks.py                 # of each network of the study, the first finished run in runs/
    python benchmarks/networks.py --only svm resnet34

Speed does not hang on what was learnt, so any run of a network will do. Rounds are interleaved, so that a busy machine hits all
alike; what counts are the ratios. The record goes to nbs/experiments/records/02_speed.json (`--out` changes that), and the study reads it there.
"""
import argparse, json, statistics, time, warnings
from pathlib import Path

root = Path(__file__).resolve().parent.parent
NETWORKS = ['mednet','mednet_tuned','mednet_improved','svm','test_resnet','resnet34','resnet50']

def finished(runs):
    "The learner folder of the first finished MedNIST run, by name, of each network as it stands, without options"
    recipes = {f.parent: json.loads(f.read_text())['recipe'] for f in sorted(runs.glob('*/record.json'), reverse=True)}
    found = {r['arch']: d/'learner' for d,r in recipes.items() if r['source']=='mednist' and (r['arch']=='svm' or not r['model_kwargs'])}
    return {k: found[k] for k in NETWORKS if k in found}

def batches_for(forward, x, seconds):
    "How many batches fill about so many seconds; the first two calls are not counted, since they set the graph up"
    for _ in range(2): forward(x)
    t = time.perf_counter()
    forward(x)
    return max(1, round(seconds/(time.perf_counter()-t)))

def one_round(forward, x, n):
    "Images a second over `n` batches"
    t = time.perf_counter()
    for _ in range(n): forward(x)
    return n*forward.batches*len(x)/(time.perf_counter()-t)

def measure(folders, batch, rounds, seconds):
    "Images a second of each learner, median of interleaved rounds, and all of the rounds"
    import numpy as np
    from mednist_fastai.infer import Predictor
    from peers import at_once
    rng,nets = np.random.default_rng(0),{}
    for k,f in folders.items():
        p = Predictor(f, precision='float32')
        p.forward = at_once(p.engine)
        x = rng.integers(0, 256, (batch, p.learner.channels, p.learner.size, p.learner.size), dtype=np.uint8)
        nets[k] = (p,x,batches_for(p.forward, x, seconds))
    found = {k: [] for k in nets}
    for _ in range(rounds):
        for k,(p,x,n) in nets.items(): found[k].append(one_round(p.forward, x, n))
    return {k: dict(run=folders[k].parent.name, size=nets[k][0].learner.size, device=nets[k][0].device, images_per_s=round(statistics.median(v)),
                    rounds=[round(o) for o in v]) for k,v in found.items()}

def main():
    warnings.filterwarnings('ignore', category=FutureWarning) # of torch, to the authors of packages
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--runs', type=Path, default=root/'runs', help='folder of the run folders')
    p.add_argument('--only', nargs='*', help='names of networks; all with a finished run by default')
    p.add_argument('--batch', type=int, default=64); p.add_argument('--rounds', type=int, default=5)
    p.add_argument('--seconds', type=float, default=1., help='of one network in one round')
    p.add_argument('--out', type=Path, default=root/'nbs/experiments/records/02_speed.json')
    args = p.parse_args()
    folders = {k: f for k,f in finished(args.runs).items() if not args.only or k in args.only}
    if not folders: return print(f'no finished run of {", ".join(args.only or NETWORKS)} in {args.runs.name}/: nothing to measure')
    rows = measure(folders, args.batch, args.rounds, args.seconds)
    base = rows.get('resnet34', {}).get('images_per_s')
    for r in rows.values(): r['ratio_to_resnet34'] = round(r['images_per_s']/base, 2) if base else None
    from mednist_fastai.train import machine, versions
    record = dict(what='forward pass of Predictor on pixels in memory', batch=args.batch, rounds=args.rounds, networks=rows, machine=machine(), versions=versions())
    args.out.write_text(json.dumps(record, indent=1)+'\n')
    print(json.dumps(record, indent=1))

if __name__=='__main__': main()
