"""The learner in the package on tensors in memory, by each engine that is installed, side by side in one process: images a second, and the ratio
to ONNX Runtime in float32. OpenVINO is not a requirement of the package: `pip install openvino` to measure it.

python benchmarks/engines.py [--write nbs/experiments/records/03_engines.json]"""
import argparse, json, statistics, time
import numpy as np
from mednist_fastai.infer import Predictor
from mednist_fastai.train import machine, versions

def onnx_runtime(p): return lambda x: p.forward(x)[0]

def openvino(p, precision):
    import openvino as ov
    c = ov.Core()
    net = c.compile_model(c.read_model(p.learner.graph), 'CPU', {'INFERENCE_PRECISION_HINT':precision, 'INFERENCE_NUM_THREADS':p.session.get_session_options().intra_op_num_threads})
    request = net.create_infer_request()
    return lambda x: request.infer({0:x})[net.output('probabilities')]

def speed(f, x, seconds):
    n,start = 0,time.perf_counter()
    while time.perf_counter()-start < seconds: f(x); n += len(x)
    return n/(time.perf_counter()-start)

def main():
    a = argparse.ArgumentParser(description=__doc__)
    a.add_argument('--write'); a.add_argument('--seconds', type=float, default=1.5); a.add_argument('--rounds', type=int, default=5)
    a = a.parse_args()
    p = Predictor()
    engines = {'ONNX Runtime, float32':onnx_runtime(p)}
    try: engines |= {'OpenVINO, float32':openvino(p, 'f32'), 'OpenVINO, bfloat16':openvino(p, 'bf16')}
    except ImportError: print('OpenVINO is not installed and not measured')
    x = np.random.default_rng(0).integers(0, 256, (64,p.learner.channels,p.learner.size,p.learner.size), dtype=np.uint8)
    want = engines['ONNX Runtime, float32'](x)
    differ = {k:float(np.abs(f(x)-want).max()) for k,f in engines.items()} # also warms each up
    got = {k:[] for k in engines}
    for _ in range(a.rounds): # by turns, so that a busy moment hits all of them
        for k,f in engines.items(): got[k].append(speed(f, x, a.seconds))
    mid = {k:statistics.median(v) for k,v in got.items()}
    for k,v in mid.items(): print(f'{k:24} {v:8,.0f} images/s   x {v/mid["ONNX Runtime, float32"]:.2f}   largest difference of a probability {differ[k]:.1g}')
    record = dict(learner=p.learner.digest, images_per_second={k:round(v) for k,v in mid.items()}, differ=differ, batch=64, rounds=a.rounds, machine=machine(), versions=versions())
    if a.write:
        with open(a.write, 'w', encoding='utf-8') as f: f.write(json.dumps(record, indent=1)+'\n')

if __name__=='__main__': main()
