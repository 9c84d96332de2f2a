"""A search index of a million vectors: time to build, memory, time a query, and recall@10 against the exact search.

    python benchmarks/search.py --write nbs/experiments/records/09_search_million.json   # some minutes on two cores
    python benchmarks/search.py --n 120000                                               # does it work?

Vectors are those of MedNIST images (phantoms where MEDNIST_FASTAI_DATA names no data) by the learner in the package, each as often as needed with
normal noise of a twentieth of their spread; queries are further ones of the same kind. Building runs in a process of its own, whose peak memory is told.
"""
import argparse, json, os, subprocess, sys, tempfile, time, warnings
from pathlib import Path
import numpy as np

def vectors(n, queries, seed=0):
    "(n,D) and (queries,D), and what they are made of"
    from mednist_fastai.infer import predict_files
    if os.environ.get('MEDNIST_FASTAI_DATA'):
        from mednist_fastai.data import get_index
        df,what = get_index('mednist'),'MedNIST, all images'
    else:
        from mednist_fastai.phantom import make_phantoms
        df,what = make_phantoms(Path(tempfile.mkdtemp())/'phantoms', n=500),'phantoms'
    e = predict_files(df.path, precision='float32', device='cpu')[1]
    rng,spread = np.random.default_rng(seed),e.std(0)/20
    def draw(m): return (e[rng.integers(len(e), size=m)]+spread*rng.normal(size=(m,e.shape[1]))).astype(np.float32)
    return draw(n),draw(queries),f'{what}: {len(e):,} vectors, with noise'

def peak():
    "Peak memory of this process, MiB (Linux; `ru_maxrss` would count that of the process it was forked from)"
    return next(int(l.split()[1]) for l in open('/proc/self/status') if l.startswith('VmHWM'))/1024

def build(box):
    "What the other process does"
    from mednist_fastai.search import SearchIndex
    v = np.load(box/'v.npy')
    ix = SearchIndex.create(box/'index')
    base,start = peak(),time.perf_counter()
    ix.add_vectors([f'{i:07}.png' for i in range(len(v))], v, [f'{i:064x}' for i in range(len(v))])
    print(json.dumps(dict(build_seconds=time.perf_counter()-start, peak_mib=peak(), peak_mib_before=base)))

def clock(f, times=3):
    "Seconds of the fastest of some runs"
    best = []
    for _ in range(times): t = time.perf_counter(); f(); best.append(time.perf_counter()-t)
    return min(best)

def main():
    warnings.filterwarnings('ignore', category=FutureWarning) # of torch, to the authors of packages
    p = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    p.add_argument('--n', type=int, default=1_000_000); p.add_argument('--queries', type=int, default=2000); p.add_argument('--write', type=Path)
    p.add_argument('--build', type=Path, help=argparse.SUPPRESS)
    a = p.parse_args()
    if a.build: return build(a.build)
    from mednist_fastai.search import SearchIndex, nearest, unit_vectors
    from mednist_fastai.train import machine, versions
    with tempfile.TemporaryDirectory() as d:
        box = Path(d)
        v,q,what = vectors(a.n, a.queries)
        np.save(box/'v.npy', v)
        del v
        res = json.loads(subprocess.run([sys.executable, __file__, '--build', box], check=True, capture_output=True, text=True).stdout)
        t = time.perf_counter(); SearchIndex(box/'index', verify=False); loose = time.perf_counter()-t
        t = time.perf_counter(); ix = SearchIndex(box/'index'); checked = time.perf_counter()-t
        true = nearest(ix.vectors, unit_vectors(q), 10)[1]
        found = ix.search(q, 10)[1]
        hit = np.array([len(set(f)&set(t))/10 for f,t in zip(found.tolist(), true.tolist())])
        few,unit = q[:200],unit_vectors(q[:200])
        res |= dict(n=a.n, dim=int(q.shape[1]), what=what, queries=len(q), cells=ix.ivf and ix.ivf.nlist, looked_into=ix.config['near'] and ix.config['near']['probe'],
            recall10=float(hit.mean()), recall10_lowest=float(hit.min()), file_mib=sum(f.stat().st_size for f in ix.path.iterdir())/2**20,
            ms_a_query=1000*clock(lambda: [ix.search(o[None], 10) for o in few])/len(few), ms_a_query_in_batches=1000*clock(lambda: ix.search(q, 10))/len(q),
            exact_ms_a_query=1000*clock(lambda: [nearest(ix.vectors, o[None], 10) for o in unit[:20]])/20, exact_ms_a_query_in_batches=1000*clock(lambda: nearest(ix.vectors, unit_vectors(q), 10), 1)/len(q),
            open_seconds=checked, open_unverified_seconds=loose, machine=machine(), versions=versions('faiss-cpu'))
    for k,o in res.items(): print(f'{k}: {o:,.4g}' if isinstance(o, float) else f'{k}: {o}')
    if a.write: a.write.write_text(json.dumps({k:round(o, 4) if isinstance(o, float) else o for k,o in res.items()}, indent=1)+'\n')

if __name__=='__main__': main()
