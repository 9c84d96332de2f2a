"""Sorting by many findings: each file is placed once, and folders of findings follow, whatever happens.

Run as a script it is one half of the crash test, as in `test_sort.py`: `python test_sort_multilabel.py crash learner folder copy|move link|copy`.
"""
import errno, hashlib, json, os, random, shutil, subprocess, sys, time
from contextlib import suppress
from pathlib import Path
import numpy as np
import pytest
from mednist_fastai import sort
from mednist_fastai.learner import FORMAT, KEY, LearnerFormatError, _config_digest, file_digest, open_learner
from mednist_fastai.sort import SortError, classify_folder, read_report, sort_summary
from test_sort import crash, no_debris, posix, same_frame, tree

FINDINGS = ['Left','Right','Top']

def make_learner(path, labels=FINDINGS, thresholds=(.5,.5,.5)):
    "A learner folder whose findings can be computed by eye: the brightness of the left, right and upper half of 16 x 16 pixels"
    import onnx
    from onnx import TensorProto as T, helper as h, numpy_helper
    path.mkdir(parents=True)
    w = np.zeros((16,16,3), np.float32)
    w[:,:8,0] = w[:,8:,1] = w[:8,:,2] = 8/128/255
    nodes = [h.make_node('Cast', ['image'], ['x'], to=T.FLOAT), h.make_node('Flatten', ['x'], ['flat']), h.make_node('Gemm', ['flat','w','b'], ['embedding']),
             h.make_node('Sigmoid', ['embedding'], ['probabilities'])]
    info = [h.make_tensor_value_info('image', T.UINT8, ['n',1,16,16]), *(h.make_tensor_value_info(o, T.FLOAT, ['n',3]) for o in ('probabilities','embedding'))]
    consts = [numpy_helper.from_array(w.reshape(256, 3), 'w'), numpy_helper.from_array(np.full(3, -4, np.float32), 'b')]
    onnx.save(h.make_model(h.make_graph(nodes, 'learner', info[:1], info[1:], consts), opset_imports=[h.make_opsetid('', 18)], ir_version=9), path/'model.onnx')
    for o in 'model.safetensors','README.md': (path/o).write_text('none')
    d = dict(format=FORMAT, name=path.name, task='multi_label', preprocessing=dict(size=16, method='squash', mode='L', mean=[0.], std=[1.]), temperature=1., thresholds=list(thresholds),
             thresholds_rule='by hand', record=None, metrics=[])
    config = dict(architecture='halves', num_classes=3, label_names=list(labels)) | {KEY:d}
    d['sha256'] = {o:file_digest(path/o) for o in ('model.onnx','model.safetensors','README.md')}
    d['sha256']['config.json'] = _config_digest(config)
    (path/'config.json').write_text(json.dumps(config))
    return path

def draw(path, left, right, seed=0):
    "A picture whose halves have these brightnesses, of 255, and 20 more, with a little noise on a slope, so that nothing is wrong with it"
    from PIL import Image
    x = np.random.default_rng(seed).integers(-5, 6, (32,32)) + np.linspace(5, 35, 32)[:,None]
    x[:,:16] += left
    x[:,16:] += right
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(x.clip(0, 255).astype(np.uint8)).save(path, format='png')
    os.utime(path, ns=(10**18+seed, 10**18+seed))

@pytest.fixture
def halves(tmp_path): return make_learner(tmp_path/'halves')

@pytest.fixture
def src(tmp_path):
    "24 pictures in three subfolders that use the same 8 names without extension, a quarter of them of each combination; and a text"
    for i in range(24): draw(tmp_path/'src'/f'SE{i%3}'/f'IM{i//3}', 220*(i//3%2), 220*(i//6%2), i)
    (tmp_path/'src/notes.txt').write_text('text')
    return tmp_path/'src'

@pytest.fixture
def run(src, tmp_path, halves):
    def _run(src=src, dst=tmp_path/'dst', learner=halves, **kw): return classify_folder(src, dst, learner, **{'progress':False, 'batch_size':8, **kw})
    return _run

def names(folder): return sorted(o.name for o in folder.iterdir()) if folder.is_dir() else []

def complete(df, dst, how, labels=FINDINGS):
    "Every positive file has its entry in the folder of each finding, under its own name, and nothing else has"
    for o in labels:
        want = df[df[f'd_{o}']==1]
        assert names(dst/o)==sorted(Path(p).name for p in want.destination)
        for p in map(Path, want.destination):
            e = dst/o/p.name
            assert e.read_bytes()==p.read_bytes() and e.stat().st_mtime_ns==p.stat().st_mtime_ns and e.samefile(p)==(how=='link')

# ---- the report and the one place of a file

def test_report(src, run, tmp_path, halves):
    from mednist_fastai.infer import predict_files
    before,df,dst = tree(src),run(),tmp_path/'dst'
    assert list(df.columns)==['path','label','confidence','second','second_confidence','stranger','doubts','status','destination','error','same_as', *(f'p_{o}' for o in FINDINGS), *(f'd_{o}' for o in FINDINGS)]
    assert tree(src)==before and sorted(o.name for o in dst.iterdir() if o.is_dir() and o.name!=sort.STATE)==['Finding','No Finding']
    bad,good = df[df.status!='sorted'],df[df.status=='sorted']
    assert len(bad)==1 and len(good)==24 and bad.status.item()=='unreadable' and bad.iloc[0,11:].isna().all() and bad.label.item()=='' and bad.destination.item()==''
    probs,_,_ = predict_files(good.path, halves)
    p,d = good[[f'p_{o}' for o in FINDINGS]].to_numpy(),good[[f'd_{o}' for o in FINDINGS]].to_numpy()
    assert (p.astype(np.float32)==probs).all() and (d==(probs>=.5)).all()
    for o,pi,di in zip(good.itertuples(), p, d):
        assert o.label==('|'.join(np.array(FINDINGS)[di==1]) or 'No Finding') and Path(o.destination).parent==dst/('Finding' if di.any() else 'No Finding')
        assert abs(o.confidence-(pi[di==1].max() if di.any() else 1-pi.max()))<1e-6
    assert {*good.label}=={'No Finding','Left','Right','Left|Right|Top'}
    assert good.destination.is_unique and len(list(dst.glob('*/*')))-len(list((dst/sort.STATE).iterdir()))==24
    same_frame(read_report(dst), df)
    same_frame(run(), df)
    no_debris(dst)

def test_summary_counts_each_finding(run):
    df = run()
    s,good = sort_summary(df),df[df.status=='sorted']
    assert list(s.index)==['sorted','unreadable'] and s['all'].tolist()==[24,1]
    for o in FINDINGS: assert s.loc['sorted'].get(o, 0)==good[f'd_{o}'].sum()
    assert s.loc['sorted','No Finding']==(good.label=='No Finding').sum()

def test_thresholds_decide(run, tmp_path):
    "Those of the learner, reached exactly counts; and a folder has one set of them"
    df = run()
    p = float(np.sort(df.p_Left)[12]) # float64 of a float32: equal to one of the probabilities
    other = make_learner(tmp_path/'other', thresholds=(p, 1, 0))
    again = run(learner=other, dst=tmp_path/'dst2')
    ok = again.status=='sorted'
    assert (again.d_Left[ok]==(again.p_Left[ok]>=p)).all() and (again.d_Left[again.p_Left==p]==1).all() and (again.d_Right[ok]==0).all() and (again.d_Top[ok]==1).all()
    with pytest.raises(SortError, match='another learner or with other thresholds'): run(learner=other)
    same_frame(run(), df)

def test_same_names_in_every_series(run, tmp_path):
    df = run()
    got = [Path(o).name for o in df.destination[df.status=='sorted']]
    assert {o.split('-')[0] for o in got}=={f'IM{i}' for i in range(8)} and {o.split('-')[-1] for o in got if '-' in o}<={'2','3'}
    assert not any('.' in o for o in got) and not [o for o in (tmp_path/'dst').rglob('*') if o.is_symlink()]

def test_the_least_sure_decision_counts(run):
    df = run(min_confidence=.95)
    ok = df.status!='unreadable'
    p = df.loc[ok,[f'p_{o}' for o in FINDINGS]].to_numpy()
    sure = np.where(p>=.5, p, 1-p).min(1)
    assert ((df.status[ok]=='review')==(sure<.95)).all() and 0<(sure<.95).sum()<24 and (df.doubts[ok]==np.where(sure<.95, 'unsure', '')).all()

# ---- folders of findings

@pytest.mark.parametrize('move', [False,True])
@pytest.mark.parametrize('how', ['link','copy'])
def test_per_finding(src, run, tmp_path, how, move):
    want = run(dst=tmp_path/'plain')
    df,dst = run(per_finding=how, move=move),tmp_path/'dst'
    same_frame(df.assign(destination=df.destination.str.replace('/dst/', '/plain/')), want)
    complete(df, dst, how)
    assert len([o for o in src.rglob('IM*') if o.is_file()])==(0 if move else 24)
    before = tree(dst, state=True)
    same_frame(run(per_finding=how, move=move), df)
    after = tree(dst, state=True)
    assert {k:v for k,v in after.items() if k!='report.csv' and not k.startswith(sort.STATE)}=={k:v for k,v in before.items() if k!='report.csv' and not k.startswith(sort.STATE)}
    no_debris(dst)

@pytest.mark.parametrize('move', [False,True])
def test_asked_for_later(src, run, tmp_path, move):
    "Files sorted before get theirs, moved ones too; then the folders stay complete"
    df,dst = run(move=move),tmp_path/'dst'
    same_frame(run(per_finding='copy', move=move), df)
    complete(df, dst, 'copy')
    gone = next((dst/'Left').iterdir())
    gone.unlink()
    draw(src/'new', 220, 220, 99)
    with pytest.raises(SortError, match='stay complete'): run()
    assert not gone.exists() and (src/'new').exists()
    again = run(per_finding='link', move=move) # the way may change
    assert len(again)==len(df)+1 and gone.exists() and names(dst/'Left')==sorted(Path(o).name for o in again.destination[again.d_Left==1])

def test_copy_then_move(src, run, tmp_path):
    df = run(per_finding='link')
    same_frame(run(per_finding='link', move=True), df)
    complete(df, tmp_path/'dst', 'link')
    assert [o.name for o in src.rglob('*') if o.is_file()]==['notes.txt']

def test_names_that_are_taken(src, run, tmp_path, monkeypatch):
    "Somebody's files in a folder of a finding stay, those that come at the last moment too"
    dst = tmp_path/'dst'
    theirs = {dst/'Left'/o.upper():o for o in names(src/'SE0')[:3]}
    real = sort._Placer.enter
    def enter(self, row, dest, how):
        to = dst/dest
        if len(theirs)<6 and to.parent.name=='Top' and not to.exists():
            to.parent.mkdir(exist_ok=True)
            to.write_text('theirs')
            theirs[to] = 'theirs'
        return real(self, row, dest, how)
    for p,text in theirs.items():
        p.parent.mkdir(parents=True, exist_ok=True)
        p.write_text(text)
    monkeypatch.setattr(sort._Placer, 'enter', enter)
    df = run(per_finding='link')
    assert len(theirs)==6 and all(p.read_text()==text for p,text in theirs.items()) and (df.error[df.status=='sorted']=='').all()
    def entries(o): return sorted(p.stat().st_ino for p in (dst/o).iterdir() if p not in theirs)
    for o in FINDINGS: assert entries(o)==sorted(os.stat(p).st_ino for p in df.destination[df[f'd_{o}']==1])
    monkeypatch.undo()
    before = {p:p.stat().st_ino for p in dst.glob('*/*')}
    same_frame(run(per_finding='link'), df)
    assert {p:p.stat().st_ino for p in dst.glob('*/*')}==before

def test_a_placed_file_that_changes(src, run, tmp_path):
    "Edited, it is somebody's and stays; its source is placed again, with entries of its own. Gone after a move, nothing is made of nothing"
    df,dst = run(per_finding='copy'),tmp_path/'dst'
    edited = Path(df.destination[df.d_Left==1].iloc[0])
    edited.write_bytes(edited.read_bytes()+b'more')
    again = run(per_finding='copy')
    new = Path(again.destination[again.path==df.path[df.destination==str(edited)].item()].item())
    assert edited.read_bytes().endswith(b'more') and new!=edited and (dst/'Left'/new.name).read_bytes()==new.read_bytes()
    moved = run(per_finding='copy', move=True)
    Path(moved.destination[moved.d_Left==1].iloc[-1]).unlink()
    for o in (dst/'Left').iterdir(): o.unlink()
    same_frame(run(per_finding='copy', move=True), moved)
    assert len(names(dst/'Left'))==(moved.d_Left==1).sum()-1

def test_gone_between_placing_and_entering(src, run, tmp_path, monkeypatch):
    real,gone = sort._Placer.enter,[]
    def enter(self, row, dest, how):
        if not gone:
            gone.append(self.at(row))
            os.unlink(gone[0])
        return real(self, row, dest, how)
    monkeypatch.setattr(sort._Placer, 'enter', enter)
    df = run(per_finding='link')
    assert df.error[df.destination==gone[0]].item() and (df.error!='').sum()==2
    monkeypatch.undo()
    df = run(per_finding='link')
    assert (df.error!='').sum()==1
    complete(df, tmp_path/'dst', 'link')

# ---- labels

@pytest.mark.parametrize('labels', [['_review','Finding','a/b'], ['..','report.csv','no finding'], ['Mass','mass','No Finding']])
def test_odd_labels(run, tmp_path, labels):
    lf = make_learner(tmp_path/'odd', labels=labels)
    df,dst = run(learner=lf, per_finding='link'),tmp_path/'dst'
    last = labels[-1].lower()=='no finding'
    known = labels[:2] if last else labels
    ok = df.status=='sorted'
    assert {Path(o).parent.name for o in df.destination[ok]}<={'Finding','No Finding'} and {o.name for o in tmp_path.iterdir()}=={'odd','src','dst','halves'}
    positive = (df[[f'd_{o}' for o in known]]==1).any(axis=1)
    assert (df.destination[ok & positive].str.contains('/Finding/')).all() and (df.destination[ok & ~positive].str.contains('/No Finding/')).all()
    assert (df.label[ok & ~positive]=='No Finding').all() and not df.label.str.contains('no finding').any()
    dirs = {o.name for o in dst.iterdir() if o.is_dir()}-{sort.STATE,'Finding','No Finding'}
    assert len(dirs)==len([o for o in known if (df[f'd_{o}']==1).any()]) and not dirs & {'_review','..','report.csv'}
    if last: assert (df.loc[ok,f'd_{labels[2]}']==(df.loc[ok,f'p_{labels[2]}']>=.5)).all() # in the report as any other
    same_frame(run(learner=lf, per_finding='link'), df)

# ---- what is refused

def test_refused(src, run, tmp_path, halves):
    before = tree(src)
    with pytest.raises(LearnerFormatError, match='no confidence is known'): run(risk=.01)
    with pytest.raises(SortError, match="'link' or 'copy'"): run(per_finding='symlink')
    (tmp_path/'dst').mkdir()
    (tmp_path/'dst/Top').write_text('a file')
    with pytest.raises(SortError, match='in the way'): run(per_finding='link')
    (tmp_path/'dst/Top').unlink()
    run(per_finding='link')
    for o in 'Finding','No Finding','Left':
        (tmp_path/'dst'/o).mkdir(exist_ok=True)
        with pytest.raises(SortError, match='sorted into'): run(src=tmp_path/'dst'/o)
    assert tree(src)==before

@pytest.mark.parametrize('move', [False,True])
def test_a_disk_without_links(src, run, tmp_path, monkeypatch, move):
    "Found out before anything is placed; copies do"
    def link(*args, **kw): raise OSError(errno.EPERM, os.strerror(errno.EPERM))
    monkeypatch.setattr(os, 'link', link)
    before = tree(src)
    with pytest.raises(SortError, match="per_finding='copy'"): run(per_finding='link', move=move)
    assert tree(src)==before and not list((tmp_path/'dst').glob('*inding'))
    no_debris(tmp_path/'dst')
    df = run(per_finding='copy', move=move)
    complete(df, tmp_path/'dst', 'copy')
    same_frame(run(per_finding='copy', move=move), df)
    no_debris(tmp_path/'dst')

# ---- stopped, full, killed

@pytest.mark.parametrize('how', ['link','copy'])
def test_full_disk_between_entries(src, run, tmp_path, monkeypatch, how):
    want = run(dst=tmp_path/'want', per_finding=how)
    real,n = sort._Placer.enter,[]
    def enter(self, row, dest, how):
        n.append(0)
        if len(n)>5: raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(self, row, dest, how)
    monkeypatch.setattr(sort._Placer, 'enter', enter)
    with pytest.raises(SortError, match='nothing is lost'): run(move=True, per_finding=how)
    monkeypatch.undo()
    df = run(move=True, per_finding=how)
    same_frame(df.assign(destination=df.destination.str.replace('/dst/', '/want/')), want)
    complete(df, tmp_path/'dst', how)
    no_debris(tmp_path/'dst')

def test_ctrl_c_between_entries(src, run, tmp_path, monkeypatch):
    want = run(dst=tmp_path/'want', per_finding='link')
    real,n = sort._Placer.enter,[]
    def enter(self, row, dest, how):
        n.append(0)
        if len(n)==7: raise KeyboardInterrupt
        return real(self, row, dest, how)
    monkeypatch.setattr(sort._Placer, 'enter', enter)
    with pytest.raises(KeyboardInterrupt): run(per_finding='link')
    monkeypatch.undo()
    df = read_report(tmp_path/'dst')
    placed = [str(o) for d in ('Finding','No Finding') for o in (tmp_path/'dst'/d).glob('*')]
    assert 0<len(df)<24 and sorted(df.destination)==sorted(placed)
    df = run(per_finding='link')
    same_frame(df.assign(destination=df.destination.str.replace('/dst/', '/want/')), want)
    complete(df, tmp_path/'dst', 'link')

class Stub:
    "Stands in for `Predictor` where only the placing is tested: findings from the bytes of the file"
    batch_size = 4
    window = frame = None
    def __init__(self, lf, **choices): self.labels = lf.labels
    def decide(self, probs): return probs>=.5
    def predict(self, paths, load):
        from mednist_fastai.images import ImageError, NotAnImageError
        from mednist_fastai.infer import Prediction
        for f in paths:
            with suppress(ImageError): load(f, 64)
            p = np.float32([.1+.8*(o%2) for o in hashlib.sha256(Path(f).read_bytes()).digest()[:3]])
            yield Prediction(f, None, None, NotAnImageError(f, 'no image')) if f.endswith('.txt') else Prediction(f, p, p, None)

@posix
@pytest.mark.skipif(sys.platform=='darwin', reason='forking is not safe there')
@pytest.mark.parametrize('move,how', [('copy','copy'),('move','link')])
def test_dies_at_every_change_of_the_disk(tmp_path, halves, move, how):
    res = subprocess.run([sys.executable, __file__, 'crash', halves, tmp_path/'lab', move, how], capture_output=True, text=True)
    assert res.returncode==0, res.stderr[-3000:]
    assert int(res.stdout)>60

KILL = '''import sys
from mednist_fastai.sort import classify_folder
classify_folder(*sys.argv[1:4], move=sys.argv[4]=="move", batch_size=8, progress=False, per_finding=sys.argv[5])'''

@posix
@pytest.mark.parametrize('move,how', [('copy','link'),('move','copy')])
def test_sigkill(tmp_path, halves, move, how):
    "The real thing: a process is killed at random moments of its work"
    src,dst,rng = tmp_path/'src',tmp_path/'dst',random.Random(move)
    def reset():
        for o in src,dst: shutil.rmtree(o, ignore_errors=True)
        for i in range(160): draw(src/str(i%7)/f'IM{i%50:02}', 220*(i//3%2), 220*(i//6%2), i)
    def sort_it(): return classify_folder(src, dst, halves, move=move=='move', batch_size=8, progress=False, per_finding=how)
    reset()
    files,want = sorted(tree(src).values()),sort_it()
    state = tree(src),tree(dst)
    assert len(state[1])>300
    for _ in range(2):
        reset()
        stop = rng.randrange(1, 300)
        p = subprocess.Popen([sys.executable, '-c', KILL, src, dst, halves, move, how])
        while p.poll() is None and sum(len(fs) for d,_,fs in os.walk(dst) if sort.STATE not in d)<stop: time.sleep(.001)
        p.kill()
        p.wait()
        assert {*tree(src).values(), *(v for k,v in tree(dst).items() if k!='report.csv')}==set(files)
        same_frame(sort_it(), want)
        assert (tree(src),tree(dst))==state
        complete(want, dst, how)
        no_debris(dst)

if __name__=='__main__' and sys.argv[1:2]==['crash']: crash(*sys.argv[2:4], move=sys.argv[4]=='move', stub=Stub, per_finding=sys.argv[5])
