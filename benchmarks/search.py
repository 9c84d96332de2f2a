"""A search index of a million vectors: time to build, memory, time a query and a change, and recall@10 against the exact search.

    python benchmarks/search.py --write nbs/experiments/records/09_search_million.json   # some minutes on two cores
    python benchmarks/search.py --learner runs/resnet34-dedup-seed0/learner --images 12000 --write nbs/experiments/records/09_search_million_512.json
    python benchmarks/search.py --peers --write nbs/experiments/records/09_search_peers.json # FAISS beside usearch (pip install usearch)
    python benchmarks/search.py --n 120000                                               # does it work?

There are not a million images here. Queries are vectors of real MedNIST images (phantoms where MEDNIST_FASTAI_DATA names no data), none of which is in the index. Those in the index
lie between the vector of another real image and that of one of its twenty nearest, at a random place, with normal noise of a twentieth of the spread: neighbours are then
many different points, and not copies of one. Recall is told for images of another source, too (nih_cxr). Building runs in a process of its own, whose peak memory is told.
"""
import argparse, json, os, subprocess, sys, tempfile, time, warnings
from pathlib import Path
import numpy as np

def real_vectors(learner, images):
    "Vectors of real images and what they are of"
    from mednist_fastai.infer import predict_files
    if os.environ.get('MEDNIST_FASTAI_DATA'):
        from mednist_fastai.data import get_index
        df,what = get_index('mednist'),'MedNIST'
    else:
        from mednist_fastai.phantom import make_phantoms
        df,what = make_phantoms(Path(tempfile.mkdtemp())/'phantoms', n=1500),'phantoms'
    if images and images<len(df): df = df.sample(images, random_state=0)
    return predict_files(df.path, learner, precision='float32', device='cpu')[1],what

def other_vectors(learner):
    "Vectors of images of another source, as a user's may be; None where there is none"
    if not os.environ.get('MEDNIST_FASTAI_DATA'): return
    from mednist_fastai.data import get_index
    from mednist_fastai.infer import predict_files
    return predict_files(get_index('nih_cxr').path, learner, precision='float32', device='cpu')[1]

def vectors(n, queries, learner=None, images=0, seed=0):
    "(n,D) for the index, (queries,D) of other images, and what they are made of"
    from mednist_fastai.search import nearest, unit_vectors
    e,what = real_vectors(learner, images)
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(e))
    q,base = e[order[:queries]],e[order[queries:]]
    near,spread = nearest(unit_vectors(base), unit_vectors(base), 21)[1][:,1:],base.std(0)/20
    v = np.empty((n,e.shape[1]), np.float32)
    for s in range(0, n, 50_000):
        a = rng.integers(len(base), size=min(50_000, n-s))
        b,t = near[a,rng.integers(near.shape[1], size=len(a))],rng.random((len(a),1), np.float32)
        v[s:s+len(a)] = base[a]*t + base[b]*(1-t) + spread*rng.normal(size=(len(a),e.shape[1]))
    return v,q,f'{len(base):,} images of {what} and places between neighbours, with noise; queries are {len(q):,} further images as they are'

def peak():
    "Peak memory of this process, MiB (Linux; `ru_maxrss` would count that of the process it was forked from)"
    return next(int(l.split()[1]) for l in open('/proc/self/status') if l.startswith('VmHWM'))/1024

def timed(f):
    "Seconds on the clock and of the processor, and what `f` returns"
    t,c = time.perf_counter(),time.process_time()
    res = f()
    return time.perf_counter()-t,time.process_time()-c,res

def build(box, learner):
    "What the other process does: all vectors at once, then one more, and one less"
    from mednist_fastai.search import SearchIndex
    v = np.load(box/'v.npy')
    ix = SearchIndex.create(box/'index', learner)
    base = peak()
    def add(a, b): ix.add_vectors([f'{i:07}.png' for i in range(a, b)], v[a:b], [f'{i:064x}' for i in range(a, b)])
    seconds,cpu,_ = timed(lambda: add(0, len(v)-1))
    one = timed(lambda: add(len(v)-1, len(v)))[0]
    less = timed(lambda: ix.remove(f'{0:07}.png'))[0]
    print(json.dumps(dict(build_seconds=seconds, build_cpu_seconds=cpu, peak_mib=peak(), peak_mib_before=base, add_one_seconds=one, remove_one_seconds=less)))

def clock(f, times=3): return min(timed(f)[0] for _ in range(times))

def recall(found, true): return np.array([len(set(f)&set(t))/len(t) for f,t in zip(found.tolist(), true.tolist())])

def million(a, box):
    "The index of this package"
    from mednist_fastai.search import SearchIndex, nearest, unit_vectors
    v,q,what = vectors(a.n+1, a.queries, a.learner, a.images)
    np.save(box/'v.npy', v)
    del v
    args = [sys.executable, __file__, '--build', box, *(['--learner', a.learner] if a.learner else [])]
    res = json.loads(subprocess.run(args, check=True, stdout=subprocess.PIPE, text=True).stdout)
    loose,_,_ = timed(lambda: SearchIndex(box/'index', a.learner, verify=False))
    checked,_,ix = timed(lambda: SearchIndex(box/'index', a.learner))
    unit,few = unit_vectors(q),q[:200]
    def hits(x): return recall(ix.search(x, 10)[1], nearest(ix.vectors, unit_vectors(x), 10)[1])
    hit,others = hits(q),other_vectors(a.learner)
    if others is not None: res |= dict(others=len(others), recall10_others=float(hits(others).mean()))
    return res | dict(n=len(ix), dim=int(q.shape[1]), what=what, queries=len(q), learner=ix.config['learner']['name'], cells=ix.ivf and ix.ivf.nlist, looked_into=ix.config['near'] and ix.config['near']['probe'],
        recall10_expected=ix.config['near'] and ix.config['near']['recall'], recall10=float(hit.mean()), recall10_lowest=float(hit.min()), recall10_whole=float((hit==1).mean()),
        file_mib=sum(f.stat().st_size for f in ix.path.iterdir())/2**20, ms_a_query=1000*clock(lambda: [ix.search(o[None], 10) for o in few])/len(few),
        ms_a_query_in_batches=1000*clock(lambda: ix.search(q, 10))/len(q), exact_ms_a_query=1000*clock(lambda: [nearest(ix.vectors, o[None], 10) for o in unit[:20]])/20,
        exact_ms_a_query_in_batches=1000*clock(lambda: nearest(ix.vectors, unit, 10), 1)/len(q), open_seconds=checked, open_unverified_seconds=loose)

def peers(a, box):
    "FAISS beside usearch, with one thread each: exact and approximate, the same vectors and queries"
    import faiss, usearch
    from mednist_fastai.search import _cells, nearest, unit_vectors
    from usearch.index import Index, MetricKind, search
    v,q,what = vectors(a.n, a.queries, a.learner, a.images)
    v,q,rows,ids = unit_vectors(v),unit_vectors(q),[],np.arange(a.n)
    true = nearest(v, q, 10)[1]
    def note(name, how, seconds, found, m, build=None, mib=None):
        rows.append(dict(library=name, how=how, build_seconds=build, file_mib=mib, recall10=float(recall(found, true[:m]).mean()), ms_a_query=1000*seconds/m))
    s,_,r = timed(lambda: nearest(v, q, 10)); note('faiss', 'exact, float32', s, r[1], len(q))
    s,_,r = timed(lambda: search(v, q[:200], 10, MetricKind.IP, exact=True, threads=1)); note('usearch', 'exact, float32', s, r.keys, 200)
    def inverted(): ivf = _cells(v, 0); ivf.add_with_ids(v, ids); return ivf
    built,_,ivf = timed(inverted)
    faiss.write_index(ivf, str(box/'f'))
    for ivf.nprobe in (4,8,16,32):
        s,_,r = timed(lambda: ivf.search(q, 10)); note('faiss', f'inverted file, float16, {ivf.nprobe} of {ivf.nlist} cells', s, r[1], len(q), built, (box/'f').stat().st_size/2**20)
    def graph(): ix = Index(ndim=v.shape[1], metric='ip', dtype='f16'); ix.add(ids, v, threads=1); return ix
    built,_,ix = timed(graph)
    ix.save(str(box/'u'))
    for ix.expansion_search in (64,128,256):
        s,_,r = timed(lambda: ix.search(q, 10, threads=1)); note('usearch', f'HNSW, float16, expansion {ix.expansion_search}', s, r.keys, len(q), built, (box/'u').stat().st_size/2**20)
    return dict(n=a.n, dim=int(v.shape[1]), what=what, queries=len(q), threads=faiss.omp_get_max_threads(), usearch=usearch.__version__, rows=rows)

def main():
    warnings.filterwarnings('ignore', category=FutureWarning) # of torch, to the authors of packages
    p = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    p.add_argument('--n', type=int, help='vectors; a million, or 100,000 for --peers'); p.add_argument('--queries', type=int, default=2000); p.add_argument('--write', type=Path)
    p.add_argument('--learner', help='learner folder; the one in the package where it is left out'); p.add_argument('--images', type=int, default=0, help='at most so many real images')
    p.add_argument('--peers', action='store_true', help='compare libraries'); p.add_argument('--build', type=Path, help=argparse.SUPPRESS)
    a = p.parse_args()
    if a.build: return build(a.build, a.learner)
    from mednist_fastai.train import machine, versions
    a.n,load = a.n or (100_000 if a.peers else 1_000_000),os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as d: res = (peers if a.peers else million)(a, Path(d))
    res |= dict(machine=machine(), threads=int(os.environ.get('OMP_NUM_THREADS', 0)) or 'all', load_before=load, versions=versions('faiss-cpu')) # a load above 0: others computed, too
    for k,o in res.items(): print(f'{k}: {o:,.4g}' if isinstance(o, float) else f'{k}: {o}')
    def short(o): return {k:short(v) for k,v in o.items()} if isinstance(o, dict) else [short(v) for v in o] if isinstance(o, list) else float(f'{o:.6g}') if isinstance(o, float) else o
    if a.write: a.write.write_text(json.dumps(short(res), indent=1)+'\n')

if __name__=='__main__': main()
