"""The learner in the package on tensors in memory, by each engine and precision that this machine has, side by side in one process: images a second, and the
ratio to ONNX Runtime in float32. With --elsewhere also: how many labels of real images from elsewhere each precision changes, of it and of the learners named.

python benchmarks/engines.py [--write nbs/experiments/records/03_engines.json]
python benchmarks/engines.py --elsewhere runs/mednist-resnet34/learner --write nbs/experiments/records/07_engines.json"""
import argparse, json, statistics, time
import numpy as np
from mednist_fastai.engines import OnnxRuntime, OpenVino, supported
from mednist_fastai.learner import INT8, _loader, open_learner
from mednist_fastai.train import machine, versions
from peers import at_once

def speed(f, x, seconds):
    n,start = 0,time.perf_counter()
    while time.perf_counter()-start < seconds: f(x); n += f.batches*len(x)
    return n/(time.perf_counter()-start)

def elsewhere(folders):
    "The counts of the precision check on the images of `elsewhere`, for each learner folder"
    from mednist_fastai.data import get_index
    from mednist_fastai.engines import check_precisions
    paths,res = get_index('elsewhere').path.tolist(),{}
    for lf in map(open_learner, folders):
        load = _loader(lf.info["preprocessing"])
        def batches():
            for i in range(0, len(paths), 64): yield "real",np.stack([load(p) for p in paths[i:i+64]])
        engines = {'float32':OnnxRuntime(lf.graph)} | {p:OpenVino(lf.path/INT8 if p=='int8' else lf.graph, p) for p in lf.precisions if p in supported() and p!='float32'}
        res[lf.info['name']] = {p:{k:o[k] for k in ('n','changed','beyond','max_difference')} for p,o in check_precisions(engines, batches(), lf.task).items()}
    return res

def main():
    a = argparse.ArgumentParser(description=__doc__)
    a.add_argument('--write'); a.add_argument('--seconds', type=float, default=1.5); a.add_argument('--rounds', type=int, default=5)
    a.add_argument('--elsewhere', nargs='*', help='learner folders, beside the one in the package')
    a = a.parse_args()
    lf = open_learner()
    engines = {'ONNX Runtime, float32':at_once(OnnxRuntime(lf.graph))}
    engines |= {f'OpenVINO, {p}':at_once(OpenVino(lf.graph, p)) for p in ('float32','bfloat16') if p in supported()}
    x = np.random.default_rng(0).integers(0, 256, (64,lf.channels,lf.size,lf.size), dtype=np.uint8)
    want = engines['ONNX Runtime, float32'](x)[0]
    differ = {k:float(np.abs(f(x)[0]-want).max()) for k,f in engines.items()} # also warms each up
    got = {k:[] for k in engines}
    for _ in range(a.rounds): # by turns, so that a busy moment hits all of them
        for k,f in engines.items(): got[k].append(speed(f, x, a.seconds))
    mid = {k:statistics.median(v) for k,v in got.items()}
    for k,v in mid.items(): print(f'{k:24} {v:8,.0f} images/s   x {v/mid["ONNX Runtime, float32"]:.2f}   largest difference of a probability {differ[k]:.1g}')
    record = dict(learner=lf.digest, images_per_second={k:round(v) for k,v in mid.items()}, differ=differ, batch=64, rounds=a.rounds, machine=machine(), versions=versions('openvino'))
    if a.elsewhere is not None: record['elsewhere'] = elsewhere([None, *a.elsewhere])
    if a.write:
        with open(a.write, 'w', encoding='utf-8') as f: f.write(json.dumps(record, indent=1)+'\n')

if __name__=='__main__': main()
