"""What starting and feeding cost: ratios of runs made side by side, each the median of `--runs` pairs.

    python benchmarks/basics.py            # on phantoms
    python benchmarks/basics.py --data DIR # on any folder of class folders
"""
import argparse, json, os, platform, statistics, subprocess, sys, tempfile, time
from pathlib import Path

def seconds_of_import(module):
    "Wall time of `import module` in a fresh process, the interpreter's own start not counted"
    code = f'import time; t=time.perf_counter(); import {module}; print(time.perf_counter()-t)'
    return float(subprocess.run([sys.executable, '-W', 'ignore', '-c', code], capture_output=True, text=True, check=True).stdout)

def side_by_side(a, b, runs):
    "Median times of two functions that return seconds, run in turns so that a busy machine hits both"
    pairs = [(a(), b()) for _ in range(runs)]
    return tuple(statistics.median(o) for o in zip(*pairs))

def one_pass(dl):
    t = time.perf_counter()
    for _ in dl: pass
    return time.perf_counter()-t

def batches(data, runs):
    "One pass over the training batches with the decoded cache, and without it"
    from mednist_fastai.blocks import index_dls, pixel_cache
    from mednist_fastai.data import get_index, make_split
    df = make_split(get_index(data), 'random', seed=0)
    with tempfile.TemporaryDirectory() as d:
        with_cache,plain = (index_dls(df, bs=128, policy='none', cache=c).train for c in (pixel_cache(df, folder=d), None))
        return *side_by_side(lambda: one_pass(with_cache), lambda: one_pass(plain), runs), len(with_cache.dataset)

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--data'); p.add_argument('--runs', type=int, default=5)
    args = p.parse_args()
    light,heavy = side_by_side(lambda: seconds_of_import('mednist_fastai'), lambda: seconds_of_import('fastai.vision.all'), args.runs)
    with tempfile.TemporaryDirectory() as d:
        if not args.data:
            from mednist_fastai.phantom import make_phantoms
            args.data = make_phantoms(Path(d)/'phantoms', n=500).attrs['root']
        cached,plain,n = batches(args.data, args.runs)
    print(json.dumps(dict(runs=args.runs, cores=os.cpu_count(), processor=platform.processor() or platform.machine(),
        import_mednist_fastai_s=round(light, 3), import_fastai_vision_s=round(heavy, 3), import_ratio=round(heavy/light, 1),
        train_images=n, cached_images_per_s=round(n/cached), decoding_images_per_s=round(n/plain), cache_ratio=round(plain/cached, 2)), indent=1))

if __name__=='__main__': main()
