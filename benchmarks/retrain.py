"""What people's corrections gain: a learner that never saw images from elsewhere, trained on with 50, 100 and 200 labels, chosen in three ways.

    python benchmarks/retrain.py --write nbs/experiments/records/10_retrain.json         # every row; those that the record has are not run again
    python benchmarks/retrain.py --rank uncertain --n 100 --seed 0                       # one row

The start is the small network of study 02 (`small-random-seed0`: MedNIST only), from runs/. Images from elsewhere (`elsewhere`, known classes) are halved by patient
where the source names one, else by file: people label images of one half, the figures are of the other, which nobody labels. The frozen test is MedNIST's, random split, seed 0.
"""
import argparse, hashlib, json, tempfile, time, warnings
from pathlib import Path
import numpy as np, pandas as pd

root = Path(__file__).resolve().parent.parent
RANKS,NS,SEEDS = ('random','uncertain','diverse'),(50,100,200),dict(random=(0,1,2), uncertain=(0,1), diverse=(0,1))
HOW = dict(rehearse=6000, epochs=3, lr=1e-3) # the defaults of `retrain`

def halves(df):
    "Images that people may label, and those that the figures are of; a patient whom the source names is in one half"
    unit = df.group.where(df.group!='', df.path.map(lambda p: Path(p).name))
    side = unit.map(lambda o: int(hashlib.sha256(o.encode()).hexdigest()[:8], 16)%2).values
    out = []
    for s in (0,1):
        h = df[side==s].assign(split='test').reset_index(drop=True)
        h.attrs = df.attrs
        out.append(h)
    return out

def things(learner):
    "The start, its base with few validation rows, both halves, and what the start says of the first"
    from mednist_fastai.data import get_index
    from mednist_fastai.infer import predict_files
    from mednist_fastai.learner import open_learner
    from mednist_fastai.train import Recipe, recipe_index
    old = open_learner(learner)
    base = recipe_index(Recipe(**old.info['record']['recipe']))
    few = base.drop(base[base.split=='valid'].sample(frac=1, random_state=0).index[1000:])
    few.attrs = base.attrs
    pool,rest = halves(get_index('elsewhere'))
    p,e,_ = predict_files(pool.path, old, precision='float32', device='cpu')
    return old,few,pool,rest,p,e

def choose(rank, n, seed, probs, emb):
    "Which images of the pool people label"
    from mednist_fastai.retrain import rank_diverse, rank_uncertain
    if rank=='random': return np.random.default_rng(seed).permutation(len(probs))[:n]
    return rank_uncertain(probs)[:n] if rank=='uncertain' else rank_diverse(emb, n)

def labels_of(pool, probs, names):
    "What a reader who knows the class says"
    from mednist_fastai.learner import file_digest
    guess = np.array(names)[probs.argmax(1)]
    return pd.DataFrame(dict(digest=[file_digest(o) for o in pool.path], path=pool.path, label=pool.label, predicted=guess,
        status=np.where(guess==pool.label, 'validated', 'corrected'), conflict=False))

def figures(learner, base, rest):
    "Errors on the other half and on the frozen test"
    from mednist_fastai.evaluate import evaluate
    a,b = evaluate(learner, rest, 'test'),evaluate(learner, base, 'test')
    wrong = a.predictions[a.predictions.label!=a.predictions.predicted]
    return dict(n=len(rest), errors=len(wrong), by_class=wrong.label.value_counts().to_dict(), by_source=wrong.source.value_counts().to_dict(), test_n=b.metrics['n'], test_errors=b.metrics['errors'])

def row(rank, n, seed, t):
    from mednist_fastai.retrain import fine_tuned, retraining_index
    old,base,pool,rest,p,e = t
    rows = labels_of(pool, p, old.labels).iloc[choose(rank, n, seed, p, e)].reset_index(drop=True)
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as d:
        fine_tuned(old, retraining_index(base, rows, HOW['rehearse'], seed=seed), Path(d)/'learner', HOW['epochs'], HOW['lr'], seed, whole=False)
        return dict(rank=rank, labels=n, seed=seed, corrected=int((rows.status=='corrected').sum()), seconds=round(time.perf_counter()-start, 1), **figures(Path(d)/'learner', base, rest))

def main():
    from mednist_fastai.train import machine, versions
    warnings.filterwarnings('ignore')
    p = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    p.add_argument('--learner', type=Path, default=root/'runs/small-random-seed0/learner'); p.add_argument('--write', type=Path)
    p.add_argument('--rank', choices=RANKS, nargs='*', default=RANKS); p.add_argument('--n', type=int, nargs='*', default=NS); p.add_argument('--seed', type=int, nargs='*')
    a = p.parse_args()
    rec = json.loads(a.write.read_text()) if a.write and a.write.exists() else dict(rows=[])
    done,t = {(r['rank'],r['labels'],r['seed']) for r in rec['rows']},things(a.learner)
    old,base,pool,rest,probs,_ = t
    rec |= dict(machine=machine(), versions=versions(), learner=old.digest, how=HOW, pool=len(pool), pool_errors=int((np.array(old.labels)[probs.argmax(1)]!=pool.label).sum()), before=figures(old.path, base, rest))
    for n in a.n:
        for rank in a.rank:
            for seed in a.seed or SEEDS[rank]:
                if (rank,n,seed) in done: continue
                rec['rows'].append(r := row(rank, n, seed, t))
                print({k:v for k,v in r.items() if not isinstance(v, dict)}, flush=True)
                if a.write: a.write.write_text(json.dumps(rec, indent=1)+'\n')

if __name__=='__main__': main()
