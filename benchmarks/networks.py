"""How fast the networks of study 02 run forward: every finished learner in one process, in turns, on pixels in memory.

    python benchmarks/networks.py                 # the learners of runs/ that the study names
    python benchmarks/networks.py --only svm small-random-seed0

Rounds are interleaved, so that a busy machine hits all alike; what counts are the ratios. The record goes to
nbs/experiments/records/02_speed.json (`--out` changes that), and the study reads it there.
"""
import argparse, json, statistics, time, warnings
from pathlib import Path

root = Path(__file__).resolve().parent.parent
NETWORKS = dict(mednet='mednet-random-seed0', mednet_tuned='mednet-tuned-random-seed0', mednet_improved='mednet-improved-random-seed0',
    svm='svm-random-seed0', test_resnet='small-random-seed0', resnet34='mednist-resnet34', resnet50='mednist-resnet50')

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
    p.add_argument('--only', nargs='*', help='names of networks or runs; all that are finished by default')
    p.add_argument('--batch', type=int, default=64); p.add_argument('--rounds', type=int, default=5)
    p.add_argument('--seconds', type=float, default=1., help='of one network in one round')
    p.add_argument('--out', type=Path, default=root/'nbs/experiments/records/02_speed.json')
    args = p.parse_args()
    folders = {k: args.runs/r/'learner' for k,r in NETWORKS.items() if (args.runs/r/'record.json').exists() and (not args.only or {k,r} & set(args.only))}
    if not folders: return print(f'no finished run of {", ".join(NETWORKS.values())} in {args.runs.name}/: nothing to measure')
    rows = measure(folders, args.batch, args.rounds, args.seconds)
    base = rows.get('resnet34', {}).get('images_per_s')
    for r in rows.values(): r['ratio_to_resnet34'] = round(r['images_per_s']/base, 2) if base else None
    from mednist_fastai.train import machine, versions
    record = dict(what='forward pass of Predictor on pixels in memory', batch=args.batch, rounds=args.rounds, networks=rows, machine=machine(), versions=versions())
    args.out.write_text(json.dumps(record, indent=1)+'\n')
    print(json.dumps(record, indent=1))

if __name__=='__main__': main()
