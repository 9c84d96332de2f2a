"Homes of learners that survive kills; what of people's labels is used; the gate; the command"
import json, multiprocessing, os, random, shutil, signal, subprocess, sys, time
from pathlib import Path
import numpy as np, pandas as pd, pytest
from mednist_fastai.data import index_digest, make_split
from mednist_fastai.infer import Predictor
from mednist_fastai.learner import LearnerDamagedError, file_digest, open_learner
from mednist_fastai.phantom import make_phantoms
from mednist_fastai.retrain import (HomeError, RetrainError, fine_tuned, held_out, history, make_home, promote, rank_diverse, rank_mixed, rank_uncertain, retrain, retraining_index,
    rollback, twins_of_test, usable_people)

@pytest.fixture(scope='module')
def base(lab): return make_split(make_phantoms(lab/'base', n=30, seed=3), 'random', seed=0)

@pytest.fixture
def home(tiny, tmp_path): return make_home(tiny, tmp_path/'home')

def another(tiny, to, t=1.5):
    "A learner folder of other answers"
    from mednist_fastai.learner import set_trust
    shutil.copytree(tiny, to)
    set_trust(to, t)
    return to

def said(paths, labels, status='corrected', conflict=False): return pd.DataFrame(dict(digest=[file_digest(p) for p in paths], path=[str(p) for p in paths], label=labels, status=status, conflict=conflict))

def test_a_home_is_a_learner(home, tiny, phantom_files):
    assert open_learner(home).digest==open_learner(tiny).digest and Predictor(home).labels==open_learner(tiny).labels
    from mednist_fastai import classify_folder
    df = classify_folder(Path(phantom_files[0]).parent, home.parent/'sorted', home, progress=False)
    assert len(df)==50

def test_promotions_and_the_way_back(home, tiny, tmp_path):
    a,b = another(tiny, tmp_path/'a'),another(tiny, tmp_path/'b', 2.)
    names = [open_learner(home).path.name, promote(home, a), promote(home, b)]
    assert [n[:4] for n in names]==['0001','0002','0003'] and open_learner(home).digest==open_learner(b).digest
    assert rollback(home)==names[1] and rollback(home)==names[0]
    with pytest.raises(HomeError, match='nothing was promoted'): rollback(home)
    assert promote(home, b)[:4]=='0004' and rollback(home)==names[0] and open_learner(home).digest==open_learner(tiny).digest
    assert history(home).what.tolist()==['begin','promote','promote','rollback','rollback','promote','rollback']
    assert sorted(p.name[:4] for p in (home/'versions').iterdir())==['0001','0002','0003','0004']

def switch(home, a, b, ready):
    promote(home, a)
    ready.set()
    while True: promote(home, b); time.sleep(.02); rollback(home); time.sleep(.02)

def test_killed_while_it_switches(home, tiny, tmp_path):
    "At any moment the home opens as one of the versions, every digest right, and its history ends with it"
    a,b = another(tiny, tmp_path/'a'),another(tiny, tmp_path/'b', 2.)
    rng,seen,ctx = random.Random(0),set(),multiprocessing.get_context('forkserver')
    ctx.set_forkserver_preload(['mednist_fastai.retrain']) # torch is loaded once
    for i in range(100):
        ready = ctx.Event()
        p = ctx.Process(target=switch, args=(home, a, b, ready)); p.start()
        assert ready.wait(60)
        time.sleep(rng.random()*.1)
        os.kill(p.pid, signal.SIGKILL); p.join()
        lf = open_learner(home)
        assert lf.digest in {open_learner(o).digest for o in (a,b)} and history(home).version.iloc[-1]==lf.path.name
        seen.add(history(home).what.iloc[-1])
        if len(seen)==2 and i>=14: break
    assert seen=={'promote','rollback'} # it was killed on both ways
    promote(home, tiny)

def test_a_damaged_home(home):
    (home/'home.json').write_text('{')
    with pytest.raises(LearnerDamagedError, match="doesn't name a version"): open_learner(home)

def test_what_is_used(phantom_files, tmp_path):
    p = said(phantom_files[:6], ['Hand','','Foot','CXR','CXR','Hand'])
    p['status'] = ['corrected','unsure','corrected','validated','validated','validated']
    p['conflict'] = [False,False,False,True,False,False]
    p.loc[5,'path'] = str(tmp_path/'gone.png')
    use,left = usable_people(p, ['CXR','Hand'])
    assert use.digest.tolist()==p.digest[[0,4]].tolist() and len(left)==4
    assert [r.split(';')[0] for r in left.reason]==['unsure','the learner has no class Foot','people disagree','its file is missing']
    with pytest.raises(RetrainError, match='no column'): usable_people(p.drop(columns='conflict'), [])

def test_the_gate_keeps_the_same_images(phantom_files):
    d = [file_digest(p) for p in phantom_files]
    a = held_out(d)
    assert .15<a.mean()<.35 and (held_out(d[::-1])[::-1]==a).all() and (held_out(d[:7])==a[:7]).all()

def test_nothing_of_the_test_is_trained_on(base):
    test = base[base.split=='test']
    t = twins_of_test([*test.path[:2], *base[base.split=='train'].path[:5]], test)
    assert t[:2].all()

def test_the_index(base, phantom_files):
    rows = said(phantom_files[:2], ['Hand','CXR']).assign(status=['corrected','validated'])
    df = retraining_index(base, rows, rehearse=40)
    assert df.split.value_counts().to_dict()==dict(train=40+8+2, valid=(base.split=='valid').sum()) and not set(df.path)&set(base[base.split=='test'].path)
    assert df[df.source!='people'].query('split=="train"').label.value_counts().max()<=7 # evenly over six classes
    assert retraining_index(base, rows, rehearse=40).attrs['digest']==df.attrs['digest']!=retraining_index(base, rows, rehearse=40, seed=1).attrs['digest']

def test_rankings():
    rng = np.random.default_rng(0)
    e = np.concatenate([rng.normal(size=(50,8))*.05+c for c in np.eye(8)[:5]*3])
    assert len({i//50 for i in rank_diverse(e, 5)})==5 and len(set(rank_diverse(e, 100)))==100
    assert set(rank_diverse(e, 4, chosen=e[:50])//50)=={1,2,3,4}
    p = rng.dirichlet(np.ones(4), 250); p[17] = [.5,.5,0,0]
    assert rank_uncertain(p)[0]==17 and set(rank_mixed(p, e, 5))<=set(rank_uncertain(p)[:20])

def test_good_labels_are_promoted_and_bad_ones_refused(home, base, tiny, tmp_path):
    more = make_phantoms(tmp_path/'more', n=25, seed=8)
    good = said(more.path, more.label.tolist())
    res = retrain(home, good, base=base, rehearse=120, epochs=3, lr=2e-3, tolerance=.1, by='ann')
    assert res.promoted and open_learner(home).path==res.path and history(home).by.iloc[-1]=='ann'
    assert open_learner(home).info['record']['start']['digest']==open_learner(tiny).digest
    bad = good.assign(label=np.roll(good.label.values, 40))
    no = retrain(home, bad, base=base, rehearse=20, epochs=3, lr=5e-3)
    assert not no.promoted and open_learner(home).path==res.path and history(home).what.iloc[-1]=='refuse'
    assert {'worse.csv','record.json','test.png'}<=set(os.listdir(no.path/'gate')) and not (home/'candidate').exists()
    worse = pd.read_csv(no.path/'gate'/'worse.csv')
    assert (worse.old==worse.label).all() and (worse.new!=worse.label).all() and len(worse)==sum(g.broken for g in no.gates.values())
    assert rollback(home)[:4]=='0001' # what was refused is no step to take back
    with pytest.raises(RetrainError, match='more labels'): retrain(home, good.assign(status='unsure'), base=base)

def test_two_at_once(home, base):
    from mednist_fastai.retrain import _retraining
    with _retraining(home), pytest.raises(HomeError, match='another retraining'): retrain(home, said([], []), base=base)

def test_the_command(tiny, tmp_path):
    def run(*a): return subprocess.run([str(Path(sys.executable).with_name('mednist-retrain')), *map(str, a)], capture_output=True, text=True)
    home = tmp_path/'home'
    pd.DataFrame(dict(digest=[], path=[], label=[], status=[], conflict=[])).to_csv(tmp_path/'none.csv', index=False)
    assert (r := run(home, '--learner', tiny)).returncode==2 and '--store or --people' in r.stderr
    assert (r := run(home, '--history')).returncode==0 and 'begin' in r.stdout
    assert (r := run(home, '--rollback')).returncode==1 and 'nothing was promoted' in r.stderr and len(r.stderr.splitlines())==1
