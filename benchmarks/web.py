"""Many people on the page at once: seconds from their upload to their result, and the server's memory.

    python benchmarks/web.py --write nbs/experiments/records/08_web.json        # some minutes
    python benchmarks/web.py --rounds 1 --people 3 --images 10                  # does it work?

Each round is a fresh server in a process of its own, with the learner in the package, asked over 127.0.0.1; the people are threads of this process on the same cores.
Images are 256 px of noise, as PNG: nothing about them can be packed, and no two are alike. What a person does is `crowd` in tests/person.py, which is also the load test.
"""
import argparse, json, os, sys, tempfile, warnings
from pathlib import Path
import numpy as np

root = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(root/'tests'))
from person import Server, crowd

def spread(seconds): return {k:round(float(v), 2) for k,v in zip(('p50','p95','max'), (*np.percentile(seconds, (50,95)), max(seconds)))}

def one_round(people, images, bound):
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as d:
        server = Server(Path(d)/'data')
        try: got = crowd(server, people, images, bound)
        finally: server.stop()
    if got['errors'] or got['mixed_up']: print(got['errors'], got['mixed_up'], file=sys.stderr)
    s = got['seconds']
    return dict(load_before=round(load, 2), **(spread(s) if s else {}), images_per_second=round(len(s)*images/max(s), 1) if s else 0, grew_mib=round(got['grew']/2**20, 1),
        errors=len(got['errors']), mixed_up=len(got['mixed_up'])),s

def main():
    warnings.filterwarnings('ignore') # of torch, to the authors of packages
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--rounds', type=int, default=3); p.add_argument('--people', type=int, default=20); p.add_argument('--images', type=int, default=50, help='of each person')
    p.add_argument('--bound', type=int, default=600, help='seconds after which a result is not waited for any more'); p.add_argument('--write', type=Path)
    a = p.parse_args()
    rounds,took = [],[]
    for _ in range(a.rounds):
        r,s = one_round(a.people, a.images, a.bound)
        rounds.append(r); took += s
        print(r, flush=True)
    from mednist_fastai.learner import open_learner
    from mednist_fastai.train import machine, versions
    res = dict(people=a.people, images_each=a.images, all_rounds=spread(took) if took else {}, grew_mib=max(r['grew_mib'] for r in rounds), errors=sum(r['errors'] for r in rounds), mixed_up=sum(r['mixed_up'] for r in rounds),
        rounds=rounds, learner=open_learner().digest, machine=machine(), versions=versions('flask', 'waitress', 'openvino'))
    print(json.dumps(res, indent=1))
    if a.write: a.write.write_text(json.dumps(res, indent=1)+'\n')
    if res['errors'] or res['mixed_up']: sys.exit(1)

if __name__=='__main__': main()
