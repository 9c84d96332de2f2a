"""Sorting: no file is lost, overwritten or mixed up, whatever happens.

Run as a script it is one half of the crash test, which forks and so wants a process without threads: `python test_sort.py crash learner folder copy|move`.
"""
import errno, hashlib, json, os, random, shutil, socket, subprocess, sys, threading, time
from contextlib import suppress
from pathlib import Path
import pytest
from mednist_fastai import sort
from mednist_fastai.learner import LearnerDamagedError, LearnerFolder, LearnerFormatError, LearnerNotFoundError, open_learner
from mednist_fastai.sort import SortError, classify_folder, folder_names, read_report, scan_folder, sort_summary, write_report

posix = pytest.mark.skipif(os.name=='nt', reason='of POSIX systems')
not_root = pytest.mark.skipif(hasattr(os, 'geteuid') and os.geteuid()==0, reason='root may do everything')
CLASSES = 'AbdomenCT','BreastMRI','CXR','ChestCT','Hand','HeadCT'

@pytest.fixture
def src(tmp_path, phantom_files):
    "48 images in three subfolders that use the same 16 names; older than now, so that times can be compared"
    for i,f in enumerate(phantom_files[::6][:48]):
        to = tmp_path/'src'/f'day{i%3}'/f'{i//3:02}.png'
        to.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(f, to)
        os.utime(to, ns=(10**18+i, 10**18+i*1001))
    return tmp_path/'src'

@pytest.fixture
def run(src, tmp_path, tiny):
    def _run(src=src, dst=tmp_path/'dst', learner=tiny, **kw): return classify_folder(src, dst, learner, **{'progress':False, 'batch_size':16, **kw})
    return _run

def sha(path): return hashlib.sha256(Path(path).read_bytes()).hexdigest()
def tree(folder, state=False):
    "What a folder holds: relative path -> digest and time; our own bookkeeping left out"
    res = {}
    for d,ds,fs in os.walk(folder):
        if not state and sort.STATE in ds: ds.remove(sort.STATE)
        for f in fs:
            p = Path(d)/f
            res[p.relative_to(folder).as_posix()] = (sha(p), 0 if f==sort.REPORT else p.stat().st_mtime_ns)
    return res
def same_frame(a, b):
    import pandas as pd
    pd.testing.assert_frame_equal(a, b)
def no_debris(dst):
    assert not list((dst/sort.STATE/'tmp').iterdir()) and sorted(o.name for o in (dst/sort.STATE).iterdir()) == ['journal.jsonl','lock','tmp']

# ---- the ordinary case

def test_copy(src, run, tmp_path):
    before = tree(src)
    df = run()
    dst = tmp_path/'dst'
    assert list(df.columns) == ['path','label','confidence','second','second_confidence','stranger','doubts','status','destination','error','same_as', *(f'p_{o}' for o in CLASSES)]
    assert tree(src)==before and len(df)==48 and (df.status=='sorted').all() and (df.error=='').all()
    assert list(df.path)==sorted(str(o) for o in src.rglob('*.png'))
    for o in df.itertuples():
        assert os.path.isabs(o.path) and Path(o.destination).parent==dst/o.label
        assert sha(o.path)==sha(o.destination) and os.stat(o.path).st_mtime_ns==os.stat(o.destination).st_mtime_ns
        assert os.stat(o.path).st_mode==os.stat(o.destination).st_mode
        ps = {c:getattr(o, f'p_{c}') for c in CLASSES}
        assert o.confidence==max(ps.values())==ps[o.label] and abs(sum(ps.values())-1)<1e-5
    assert df.destination.is_unique and len(list(dst.glob('*/*.png')))==48
    same_frame(read_report(dst), df)
    no_debris(dst)

def test_plain_read_csv(run, src, tmp_path):
    import pandas as pd
    (src/'bad.png').write_text('x')
    df = run()
    plain = pd.read_csv(tmp_path/'dst/report.csv')
    same_frame(plain.fillna({o:'' for o in ('label','second','destination','error')}).assign(same_as=df.same_as, doubts=df.doubts).astype({'error':df.error.dtype}), df)

def test_numbers_are_those_of_predict(run, tiny):
    import numpy as np
    from mednist_fastai.infer import predict_files
    df = run()
    probs,_,_ = predict_files(df.path, tiny)
    assert (df[[f'p_{o}' for o in CLASSES]].to_numpy().astype(np.float32)==probs).all()

def test_move(src, run, tmp_path):
    before = sorted(v for v in tree(src).values())
    df = run(move=True)
    assert not [o for o in src.rglob('*') if o.is_file()]
    assert sorted(v for k,v in tree(tmp_path/'dst').items() if k!='report.csv')==before
    same_frame(run(move=True), df)
    no_debris(tmp_path/'dst')

def test_copy_then_move(src, run, tmp_path):
    df,before = run(),tree(tmp_path/'dst')
    Path(df.destination[3]).unlink()
    same_frame(run(move=True), df)
    assert tree(tmp_path/'dst')==before and not list(src.rglob('*.png'))
    same_frame(run(), df)

def test_move_does_not_take_a_copy_that_was_edited(src, run, tmp_path):
    df = run()
    edited = Path(df.destination[0])
    data = bytearray(edited.read_bytes())
    data[-1] ^= 1
    edited.write_bytes(data)
    again = run(move=True)
    assert edited.read_bytes()==data and not list(src.rglob('*.png'))
    assert len(list((tmp_path/'dst').glob('*/*.png')))==49 and sha(again.destination[0])!=sha(edited)

def test_second_run_does_what_is_missing(src, run, tmp_path, phantom_files, monkeypatch):
    df = run()
    gone = Path(df.destination[10])
    gone.unlink()
    shutil.copyfile(phantom_files[1], src/'new.png')
    before,asked,real = tree(tmp_path/'dst'),[],sort.Predictor.predict
    def predict(self, paths, load=None): return real(self, (asked.append(o) or o for o in paths), load)
    monkeypatch.setattr(sort.Predictor, 'predict', predict)
    again = run()
    after = tree(tmp_path/'dst')
    assert asked==[str(src/'new.png')]
    assert {k:v for k,v in after.items() if k in before and k!='report.csv'}=={k:v for k,v in before.items() if k!='report.csv'}
    assert gone.exists() and len(again)==49 and len(after)==len(before)+2
    same_frame(again[again.path!=str(src/'new.png')].reset_index(drop=True), df)

def test_changed_source_is_a_new_file(src, run, phantom_files):
    df = run()
    f = Path(df.path[0])
    shutil.copyfile(phantom_files[7], f)
    again = run()
    rows = again[again.path==str(f)]
    assert len(again)==49 and len(rows)==2 and rows.destination.nunique()==2 and sha(rows.destination.iloc[1])==sha(f)
    same_frame(run(), again)

def test_an_inbox_that_uses_its_names_again(src, run, phantom_files):
    df = run(move=True)
    shutil.copyfile(phantom_files[7], df.path[0])
    again = run(move=True)
    assert len(again)==49 and (again.path==df.path[0]).sum()==2 and all(map(os.path.exists, again.destination)) and again.destination.is_unique

def test_two_sources_in_one_destination(src, run, tmp_path):
    shutil.copytree(src, tmp_path/'src2')
    a = run(move=True)
    b = run(src=tmp_path/'src2', move=True)
    assert len(b)==96 and b.destination.is_unique and all(map(os.path.exists, b.destination)) and set(a.destination)<set(b.destination)

def test_recursive_false(src, run):
    shutil.copyfile(next(src.rglob('*.png')), src/'top.png')
    assert list(run(recursive=False).path)==[str(src/'top.png')]

def test_empty(run, tmp_path):
    (tmp_path/'none').mkdir()
    df = run(src=tmp_path/'none')
    assert len(df)==0 and list(df.columns)[-1]=='p_HeadCT' and df.confidence.dtype=='float64' and not len(sort_summary(df))

def test_min_confidence(run, tmp_path):
    df = run(min_confidence=.9)
    low = df.confidence<.9
    assert 0<low.sum()<48 and (df.status[low]=='review').all() and (df.status[~low]=='sorted').all()
    assert {Path(o).parent for o in df.destination[low]}=={tmp_path/'dst/_review'} and (df.label!='').all()
    s = sort_summary(df)
    assert s['all'].tolist()==[(~low).sum(), low.sum()] and s.index.tolist()==['sorted','review']
    for bad in (-.1, 1.1):
        with pytest.raises(SortError): run(min_confidence=bad)

def test_progress(run, capfd):
    run(progress=True)
    out,err = capfd.readouterr()
    assert out=='' and err==''

# ---- names

def test_order_is_that_of_whole_paths(tmp_path):
    names = ['a/x','a-b/x','a.png','a/b/c','B/x','é/x','a b','A','\U0001f600','a/b-c/x']
    for o in names:
        (tmp_path/o).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path/o).touch()
    assert [os.path.relpath(o.path, tmp_path).replace(os.sep, '/') for o in scan_folder(tmp_path)]==sorted(names)

def test_collisions(tmp_path, run, phantom_files):
    "40 folders, one name, some in another case: all are kept, under names that differ on any disk"
    src = tmp_path/'many'
    for i in range(40):
        (src/f'{i:02}').mkdir(parents=True)
        shutil.copyfile(phantom_files[i%4], src/f'{i:02}'/('IMG.PNG' if i%5==1 else 'img.png'))
    df = run(src=src)
    assert (df.status=='sorted').all() and df.destination.str.lower().is_unique and len(df)==40
    assert sorted(map(sha, df.destination))==sorted(map(sha, df.path))
    names = [Path(o).name for o in df.destination[df.label==df.label[0]]]
    assert names[0]=='img.png' and names[1]=='IMG-2.PNG' and names[2]=='img-3.png'

def test_existing_files_stay(src, run, tmp_path, tiny):
    first = run(dst=tmp_path/'elsewhere')
    theirs = {tmp_path/'dst'/Path(o).parent.name/Path(o).name.upper():Path(o).name for o in first.destination[::3]}
    for p,text in theirs.items():
        p.parent.mkdir(parents=True, exist_ok=True)
        p.write_text(text)
    for move in (False,True):
        df = run(move=move)
        assert all(p.read_text()==text for p,text in theirs.items()) and (df.status=='sorted').all()
        assert not {os.path.normcase(o) for o in df.destination} & {os.path.normcase(o) for o in theirs}

@pytest.mark.parametrize('move', [False,True])
def test_name_taken_at_the_last_moment(src, run, monkeypatch, move):
    real,taken = sort._Placer.place,[]
    def place(self, row):
        to = Path(self.at(row))
        if len(taken)<5 and not row.done:
            to.parent.mkdir(exist_ok=True)
            to.write_text('mine')
            taken.append(to)
        return real(self, row)
    monkeypatch.setattr(sort._Placer, 'place', place)
    df = run(move=move)
    assert all(o.read_text()=='mine' for o in taken) and (df.status=='sorted').all() and not set(map(str, taken)) & set(df.destination)

@posix
def test_odd_names(tmp_path, run, phantom_files):
    names = [b'new\nline.png', b'cr\rlf\r\n.png', b'"quote\'s", comma.png', '\U0001f600é.png'.encode(), b'x'*251+b'.png', b'-rf.png', b'=1+1.png', b'\xff\xfe.png', b'a\tb.png',
             b' blank .png', b'.hidden.png', b'back\\slash.png', b'%41.png', b'noext', b'many.dots.tar.png']
    for d in b'1',b'2':
        os.makedirs(os.path.join(os.fsencode(tmp_path), b'odd', d))
        for o in names: shutil.copyfile(os.fsencode(phantom_files[0]), os.path.join(os.fsencode(tmp_path), b'odd', d, o))
    df = run(src=tmp_path/'odd')
    assert len(df)==2*len(names) and (df.status=='sorted').all()
    placed = os.listdir(os.path.join(os.fsencode(tmp_path), b'dst', df.label[0].encode()))
    assert len(placed)==2*len(names) and set(names)<set(placed) and all(len(o)<=255 for o in placed)
    assert str(tmp_path/'odd/1')+'/\\udcff\\udcfe.png' in set(df.path) and str(tmp_path/'odd/2/new\nline.png') in set(df.path)
    (tmp_path/'dst/report.csv').read_text(encoding='utf-8')
    same_frame(read_report(tmp_path/'dst'), df)
    same_frame(run(src=tmp_path/'odd'), df)

def test_folder_names():
    odd = ['CXR','cxr','a/b','a\\b','..','.','CON','con','aux.x','_review','_REVIEW','report.csv','.mednist-sort','x.','x ',' x','50%','50%25','a:b?','é','tab\t']
    res = folder_names(odd)
    assert res['CXR']=='CXR' and res['é']=='é' and len({o.casefold() for o in res.values()})==len(odd)
    for o in res.values():
        assert not set(o) & set('/\\:?*<>|"\t') and o[-1] not in '. ' and o[0]!='.' and o.lower() not in ('con','aux.x','_review','report.csv')
    from urllib.parse import unquote
    assert all(unquote(v)==k for k,v in res.items())
    with pytest.raises(SortError): folder_names(['x'*300])
    with pytest.raises(SortError): folder_names([''])

def test_report_is_harmless(tmp_path):
    labels = ['=1+1','+x','-x','@x',"'x",'\tx','NA','null','a,b','a"b','a\nb']
    rows = [(f'/p/{i}', o, .1*i, o, .05*i, .5*i, o, 'sorted', f'/d/{i}', o, o, *[1e-30*i]*len(labels)) for i,o in enumerate(labels)]
    write_report(tmp_path/'r.csv', labels, rows)
    df = read_report(tmp_path/'r.csv')
    assert [tuple(o) for o in df.itertuples(index=False, name=None)]==rows
    import csv
    with open(tmp_path/'r.csv', newline='', encoding='utf-8') as f: assert not any(o[:1] and o[0] in '=+-@\t\r' for r in csv.reader(f) for o in r)

# ---- bad files

@posix
def test_bad_files(src, run, tmp_path, phantom_files):
    png,bad = Path(phantom_files[0]).read_bytes(),{}
    def put(name, data, reason=''):
        (src/name).write_bytes(data)
        bad[name] = 'unreadable'
    put('empty.png', b'')
    put('.DS_Store', b'\0\0\0\1Bud1')
    put('page.jpg', b'<html></html>')
    for i in (1,8,30,60,len(png)//2): put(f'cut{i}.png', png[:i])
    (src/'folder.jpg').mkdir()
    shutil.copyfile(phantom_files[3], src/'folder.jpg/in.png')
    os.mkfifo(src/'fifo.png')
    (src/'dangling.png').symlink_to('nowhere')
    (src/'loop').symlink_to(src)
    (src/'out').symlink_to(Path(phantom_files[0]).parent)
    (src/'link.png').symlink_to(phantom_files[0])
    s = socket.socket(socket.AF_UNIX)
    here = os.getcwd()
    os.chdir(src)
    try: s.bind('sock.png')
    finally: os.chdir(here)
    bad |= dict.fromkeys(['fifo.png','dangling.png','loop','out','link.png','sock.png'], 'skipped')
    for move in (False,True):
        df = run(move=move, dst=tmp_path/f'dst{move}')
        rest = df[df.status!='sorted']
        assert len(df)==48+1+len(bad) and {os.path.basename(o.path):o.status for o in rest.itertuples()}==bad
        assert (rest.destination=='').all() and (rest.error!='').all() and (rest.label=='').all() and rest.confidence.isna().all()
        assert all(os.path.lexists(src/o) for o in bad)
        same_frame(run(move=move, dst=tmp_path/f'dst{move}'), df)
    s.close()

@posix
@not_root
def test_unreadable_files_and_folders(src, run, tmp_path):
    (src/'day1/00.png').chmod(0)
    (src/'day2').chmod(0)
    try: df = run()
    finally: (src/'day2').chmod(0o755)
    assert df.status.value_counts().to_dict()=={'sorted':31, 'unreadable':1, 'skipped':1} and df.path[df.status=='skipped'].item()==str(src/'day2')
    (src/'day1/00.png').chmod(0o644)
    assert (run().status=='sorted').all()

@posix
@not_root
def test_read_only_source_cannot_be_moved(src, run):
    (src/'day1').chmod(0o555)
    try: df = run(move=True)
    finally: (src/'day1').chmod(0o755)
    assert df.status.value_counts().to_dict()=={'sorted':32, 'skipped':16} and len(list(src.rglob('*.png')))==16

@pytest.mark.parametrize('move', [False,True])
def test_changes_during_the_run(src, run, monkeypatch, move, tmp_path):
    "A file that grows, goes or becomes a link between the look and the placing: skipped, with its row"
    real = sort._Run.decide
    def decide(self, found, *args):
        for p in [Path(o.path) for o in found]:
            if p.name=='01.png':
                with open(p, 'ab') as f: f.write(b'more')
            if p.name=='02.png': p.unlink()
            if p.name=='03.png' and os.name!='nt':
                p.unlink()
                p.symlink_to('/etc/passwd')
        return real(self, found, *args)
    monkeypatch.setattr(sort._Run, 'decide', decide)
    df = run(move=move)
    odd = df.path.str.contains('0[123].png')
    assert len(df)==48 and (df.status[~odd]=='sorted').all() and (df.status[odd]=='skipped').all() and (df.destination[odd]=='').all() and (df.error[odd]!='').all()
    assert len(list(src.rglob('01.png')))==3 and not [o for o in (tmp_path/'dst').rglob('*') if o.is_symlink()]
    monkeypatch.undo()
    again = run(move=move)
    assert again.status[again.path.str.contains('01.png')].eq('sorted').all() and not (tmp_path/'dst'/again.label[1]/'01-4.png').exists()

# ---- folders and learners that are refused

def test_refused_folders(src, run, tmp_path):
    (tmp_path/'file').write_text('x')
    for kw,text in [(dict(src=tmp_path/'absent'),'not there'), (dict(src=tmp_path/'file'),'a file'), (dict(dst=tmp_path/'file'),'not a folder'), (dict(dst=src),'same folder'),
                    (dict(dst=src/'day1'/'..'),'same folder')]:
        with pytest.raises(SortError, match=text): run(**kw)
    assert sorted(o.name for o in src.iterdir())==['day0','day1','day2']
    run()
    for o in 'CXR','_review','CXR/deeper',sort.STATE:
        (tmp_path/'dst'/o).mkdir(parents=True, exist_ok=True)
        with pytest.raises(SortError, match='sorted into'): run(src=tmp_path/'dst'/o)
    (tmp_path/'other').mkdir()
    (tmp_path/'other/report.csv').write_text('mine')
    with pytest.raises(SortError, match='report.csv'): run(dst=tmp_path/'other')
    assert (tmp_path/'other/report.csv').read_text()=='mine'
    (tmp_path/'third').mkdir()
    (tmp_path/'third/Hand').write_text('a file')
    with pytest.raises(SortError, match='in the way'): run(dst=tmp_path/'third')

@posix
def test_class_folder_that_is_a_link(run, tmp_path):
    (tmp_path/'dst').mkdir()
    (tmp_path/'out').mkdir()
    (tmp_path/'dst/Hand').symlink_to(tmp_path/'out')
    with pytest.raises(SortError, match='in the way'): run()
    assert not list((tmp_path/'out').iterdir())

@pytest.mark.parametrize('move', [False,True])
def test_dst_inside_src(src, run, move):
    first = run(dst=src/'sorted', move=move)
    assert len(first)==48
    same_frame(run(dst=src/'sorted', move=move), first)

def test_src_inside_dst(tmp_path, src, run):
    (tmp_path/'dst').mkdir()
    shutil.move(src, tmp_path/'dst/incoming')
    assert (run(src=tmp_path/'dst/incoming', move=True).status=='sorted').all()

def test_refused_learners(src, run, tmp_path, tiny):
    before = tree(src)
    with pytest.raises(LearnerNotFoundError): run(learner=tmp_path/'absent')
    bad = shutil.copytree(tiny, tmp_path/'bad')
    with open(bad/'model.onnx', 'r+b') as f:
        f.seek(5000)
        f.write(b'\0\1\2\3')
    with pytest.raises(LearnerDamagedError): run(learner=bad)
    with pytest.raises(LearnerFormatError, match='no confidence is known'): run(risk=.01)
    with pytest.raises(SortError, match='one of them'): run(risk=.01, min_confidence=.9)
    with pytest.raises(SortError, match="'review' or 'sort'"): run(strangers='no')
    with pytest.raises(SortError, match='one class a file'): run(per_finding='link')
    assert tree(src)==before and not (tmp_path/'dst').exists()

def test_another_way_of_deciding(src, run, tmp_path, tiny):
    df,before = run(min_confidence=.5),tree(tmp_path/'dst', state=True)
    lf = open_learner(tiny)
    config = json.loads(json.dumps(lf.config))
    config['mednist_fastai']['sha256']['model.onnx'] = 'f'*64
    with pytest.raises(SortError, match='another learner'): run(min_confidence=.5, learner=LearnerFolder(lf.path, config))
    with pytest.raises(SortError, match='min_confidence=0.5'): run()
    with pytest.raises(SortError, match='window=None, not lung'): run(min_confidence=.5, window='lung')
    with pytest.raises(SortError, match='frame=None, not 0'): run(min_confidence=.5, frame=0)
    assert tree(tmp_path/'dst', state=True)==before
    same_frame(run(min_confidence=.5), df)

def test_a_window_is_part_of_the_run(run, tmp_path):
    "Written as plain numbers; the same again in another form goes on, none is another run"
    df = run(window=(40,400), frame=1)
    head = json.loads((tmp_path/'dst'/sort.STATE/'journal.jsonl').read_text().splitlines()[0])
    assert head['window']==[40,400] and head['frame']==1
    same_frame(run(window=[40.,400.], frame=1), df)
    with pytest.raises(SortError, match='window='): run(frame=1)

def test_the_head_of_a_journal(run, tmp_path, tiny):
    "As it has always been where nothing new is asked for, so that folders sorted by earlier versions go on"
    run()
    head = json.loads((tmp_path/'dst'/sort.STATE/'journal.jsonl').read_text().splitlines()[0])
    assert head==dict(learner=open_learner(tiny).digest, name='tiny', labels=list(CLASSES), min_confidence=None, mednist_sort=1)

def test_damaged_journal(run, tmp_path):
    df,j = run(),tmp_path/'dst'/sort.STATE/'journal.jsonl'
    data = j.read_bytes()
    j.write_bytes(data+b'{"path": "/half a li')
    same_frame(run(), df)
    assert j.read_bytes()==data
    lines = data.split(b'\n')
    j.write_bytes(b'\n'.join([*lines[:5], b'garbage', *lines[6:]]))
    with pytest.raises(SortError, match='line 6'): run()

@posix
def test_two_runs_at_once(run, tmp_path):
    import fcntl
    run()
    with open(tmp_path/'dst'/sort.STATE/'lock') as f:
        fcntl.flock(f, fcntl.LOCK_EX)
        with pytest.raises(SortError, match='another run'): run()
    run()

# ---- disks

def test_source_changes_after_it_was_copied_to_another_disk(src, run, monkeypatch, tmp_path):
    "The changed file stays, and its old state leaves no copy behind"
    real = sort._publish
    def publish(tmp, to):
        real(tmp, to)
        if to.endswith('01.png'):
            with open(src/'day1/01.png', 'ab') as f: f.write(b'more')
    monkeypatch.setattr(sort, '_publish', publish)
    monkeypatch.setattr(sort._Placer, '_link', lambda *args: False)
    df = run(move=True)
    assert df.path[df.status=='skipped'].tolist()==[str(src/'day1/01.png')] and len(list((tmp_path/'dst').glob('*/*.png')))==47 and (src/'day1/01.png').exists()

def test_gone_when_a_name_is_taken(src, run, monkeypatch, tmp_path):
    "Two troubles at once: the name was taken meanwhile, then the source went"
    real = sort._Placer.place
    def place(self, row):
        to = Path(self.at(row))
        if row.path.endswith('01.png') and Path(row.path).exists():
            to.parent.mkdir(exist_ok=True)
            to.write_text('mine')
            Path(row.path).unlink()
            raise FileExistsError
        return real(self, row)
    monkeypatch.setattr(sort._Placer, 'place', place)
    df = run()
    assert (df.status=='skipped').sum()==3 and len(df)==48

@pytest.mark.parametrize('move', [False,True])
@pytest.mark.parametrize('err', [errno.EXDEV, errno.EPERM])
def test_other_file_systems(src, run, tmp_path, monkeypatch, move, err):
    "A destination on another disk (EXDEV for sources), or on one that has no hard links (EPERM for all)"
    before,real = sorted(tree(src).values()),os.link
    def link(a, b, **kw):
        if err==errno.EPERM or sort.STATE not in str(a): raise OSError(err, os.strerror(err))
        return real(a, b, **kw)
    monkeypatch.setattr(os, 'link', link)
    df = run(move=move)
    assert (df.status=='sorted').all() and sorted(v for k,v in tree(tmp_path/'dst').items() if k!='report.csv')==before
    assert len(list(src.rglob('*.png')))==(0 if move else 48)
    same_frame(run(move=move), df)
    no_debris(tmp_path/'dst')

@posix
@pytest.mark.parametrize('move', [False,True])
def test_move_between_real_file_systems(src, run, move):
    import tempfile
    if not os.access('/dev/shm', os.W_OK) or os.stat('/dev/shm').st_dev==src.stat().st_dev: pytest.skip('one file system only')
    with tempfile.TemporaryDirectory(dir='/dev/shm') as d:
        before = sorted(tree(src).values())
        df = run(dst=Path(d)/'dst', move=move)
        assert (df.status=='sorted').all() and sorted(v for k,v in tree(Path(d)/'dst').items() if k!='report.csv')==before
        assert len(list(src.rglob('*.png')))==(0 if move else 48)

@pytest.mark.parametrize('move', [False,True])
@pytest.mark.parametrize('err', [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_full_or_read_only_destination(src, run, tmp_path, monkeypatch, move, err):
    "Stops with a typed error and everything where it was or where it should be; resumes to the same end"
    want = run(dst=tmp_path/'want')
    before,real,n = sorted(tree(src).values()),os.link,[]
    def link(a, b, **kw):
        n.append(0)
        if len(n)>20: raise OSError(err, os.strerror(err))
        return real(a, b, **kw)
    monkeypatch.setattr(os, 'link', link)
    with pytest.raises(SortError, match='nothing is lost'): run(move=move)
    assert len(read_report(tmp_path/'dst'))==20
    monkeypatch.undo()
    here = sorted(tree(src).values())
    there = sorted(v for k,v in tree(tmp_path/'dst').items() if k!='report.csv')
    assert (sorted(here+there) if move else here)==before and len(there)==20
    df = run(move=move)
    same_frame(df.assign(destination=df.destination.str.replace('/dst/', '/want/')), want)
    no_debris(tmp_path/'dst')

@posix
def test_full_disk_for_real(src, run, tmp_path):
    "The system itself refuses to write on (a limit on file sizes), in the middle of a journal line"
    import resource
    want = run(dst=tmp_path/'want')
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (9_000, old[1]))
    try:
        with pytest.raises(SortError, match='nothing is lost'): run()
    finally: resource.setrlimit(resource.RLIMIT_FSIZE, old)
    df = run()
    same_frame(df.assign(destination=df.destination.str.replace('/dst/', '/want/')), want)

def test_ctrl_c(src, run, tmp_path, monkeypatch):
    want = run(dst=tmp_path/'want')
    for stop in ('before','after'):
        real,n,dst = sort._Placer.place,[],tmp_path/f'dst-{stop}'
        def place(self, row):
            n.append(0)
            if len(n)==21 and stop=='before': raise KeyboardInterrupt
            real(self, row)
            if len(n)==21:
                row.done = False
                raise KeyboardInterrupt
        monkeypatch.setattr(sort._Placer, 'place', place)
        with pytest.raises(KeyboardInterrupt): run(dst=dst)
        monkeypatch.undo()
        assert not [t for t in threading.enumerate() if t.name.startswith(('decode','network','place'))]
        df = read_report(dst)
        assert len(df)==(20 if stop=='before' else 21) and sorted(df.destination)==sorted(str(o) for o in dst.glob('*/*.png'))
        df = run(dst=dst)
        same_frame(df.assign(destination=df.destination.str.replace(dst.name, 'want')), want)

# ---- the thread that places

def ends_like(run, want, dst, **kw):
    df = run(dst=dst, **kw)
    same_frame(df.assign(destination=df.destination.str.replace(dst.name, 'want')), want)
    no_debris(dst)

def no_threads(): assert not [t for t in threading.enumerate() if t.name.startswith(('decode','network','place'))]

class Gate:
    "Holds the placing thread at its `n`-th file until the main thread is at its `m`-th batch; then one of the two fails, or goes on"
    def __init__(self, monkeypatch, n, m, here=None, there=None):
        self.there,self.here,self.files,self.batches = threading.Event(),threading.Event(),0,0
        place,decide = sort._Placer.place,sort._Run.decide
        def slow(placer, row):
            self.files += 1
            if self.files==n:
                self.there.set()
                assert self.here.wait(30)
                if there: raise there
            return place(placer, row)
        def ahead(*args):
            self.batches += 1
            res = decide(*args)
            if self.batches==m:
                assert self.there.wait(30)
                self.here.set()
                if here: raise here
            return res
        monkeypatch.setattr(sort._Placer, 'place', slow)
        monkeypatch.setattr(sort._Run, 'decide', ahead)

@pytest.mark.parametrize('move', [False,True])
def test_decides_while_it_places(run, tmp_path, monkeypatch, move):
    "The second batch is decided while the first is being placed, and never the third; the journal has each batch before its files"
    gate = Gate(monkeypatch, 5, 2)
    assert (run(move=move).status=='sorted').all() and gate.files==48 and gate.batches==3
    seen,what = {},[json.loads(o) for o in (tmp_path/'dst'/sort.STATE/'journal.jsonl').read_text().splitlines()[1:]]
    for d in what:
        if 'done' in d: assert set(d['done'])<=set(seen)
        else: seen[len(seen)] = d
    assert len(seen)==48 and sum(len(d['done']) for d in what if 'done' in d)==48
    no_threads()

@pytest.mark.parametrize('move', [False,True])
@pytest.mark.parametrize('error', [OSError(errno.ENOSPC, 'No space left on device'), ZeroDivisionError('a mistake of ours')])
def test_error_in_the_placing_thread(src, run, tmp_path, monkeypatch, move, error):
    "Stops the run, while the next batch is decided already: the report holds what is placed, and the next run goes on"
    want = run(dst=tmp_path/'want')
    Gate(monkeypatch, 21, 3, there=error)
    with pytest.raises(SortError if isinstance(error, OSError) else ZeroDivisionError): run(move=move)
    no_threads()
    df = read_report(tmp_path/'dst')
    assert sorted(df.destination)==sorted(str(o) for o in (tmp_path/'dst').glob('*/*.png')) and len(df)==20 and len(list(src.rglob('*.png')))==(28 if move else 48)
    monkeypatch.undo()
    ends_like(run, want, tmp_path/'dst', move=move)

@pytest.mark.parametrize('move', [False,True])
def test_ctrl_c_while_it_places(run, tmp_path, monkeypatch, move):
    "The main thread is interrupted while the other is at work: that one finishes the file at hand, and the report is exact"
    want = run(dst=tmp_path/'want')
    Gate(monkeypatch, 5, 2, here=KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt): run(move=move)
    no_threads()
    df = read_report(tmp_path/'dst')
    assert 4<=len(df)<=16 and sorted(df.destination)==sorted(str(o) for o in (tmp_path/'dst').glob('*/*.png'))
    monkeypatch.undo()
    ends_like(run, want, tmp_path/'dst', move=move)

@pytest.mark.parametrize('large', [False,True])
def test_another_file_while_it_is_decoded(src, run, tmp_path, monkeypatch, large):
    """Another file has the place of the one that was found, for as long as it is decoded. A large one is open by then, so nothing comes of that;
    of a small one nobody knows what the decision is about, so it stays"""
    want,real,f,other = run(dst=tmp_path/'want'),sort.load_image,src/'day1/01.png',next(src.glob('day2/15.png'))
    if large: monkeypatch.setattr(sort, 'SMALL', 10)
    def load(path, *args, **kw):
        if path!=str(f): return real(path, *args, **kw)
        os.rename(f, f'{f}~')
        shutil.copyfile(other, f)
        try: return real(path, *args, **kw)
        finally: os.replace(f'{f}~', f)
    monkeypatch.setattr(sort, 'load_image', load)
    df = run()
    if not large:
        odd = df[df.path==str(f)]
        assert odd.status.tolist()==['skipped'] and odd.error.tolist()==[sort.CHANGED] and odd.label.tolist()==[''] and (df.status=='sorted').sum()==47
        monkeypatch.undo()
        df = run()
        assert df.label.tolist()==want.label.tolist() and [sha(o) for o in df.destination]==[sha(o) for o in df.path]
    else: ends_like(run, want, tmp_path/'dst')

def test_a_small_file_is_opened_once(src, run, monkeypatch):
    "For its pixels, its sha256 and its copy; where files are too long to be kept for the copy, once more"
    real,opened = os.open,[]
    def count(path, *args, **kw):
        if str(path).startswith(str(src)+os.sep): opened.append(path)
        return real(path, *args, **kw)
    monkeypatch.setattr(os, 'open', count)
    df = run()
    assert sorted(opened)==list(df.path) and (df.status=='sorted').all()

@pytest.mark.parametrize('move', [False,True])
@pytest.mark.parametrize('keep', [0,1000])
def test_files_that_are_not_kept(src, run, tmp_path, monkeypatch, keep, move):
    "The same end, whether copies are written from memory or from file to file"
    before,real = sorted(tree(src).values()),sort._fingerprint
    monkeypatch.setattr(sort, '_fingerprint', lambda row, k=0: real(row, min(k, keep)))
    monkeypatch.setattr(sort._Placer, '_link', lambda *args: False)
    assert (run(move=move).status=='sorted').all() and sorted(v for k,v in tree(tmp_path/'dst').items() if k!='report.csv')==before
    no_debris(tmp_path/'dst')

@posix
@pytest.mark.skipif(not hasattr(os, 'O_TMPFILE'), reason='of Linux')
@pytest.mark.parametrize('err', [errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL, 'no /proc'])
def test_no_files_without_a_name(src, run, tmp_path, monkeypatch, err):
    "As on network and FAT disks: copies have a temporary name, and all is the same"
    modes = [0o600, 0o644, 0o664, 0o755, 0o444]
    for i,f in enumerate(sorted(src.rglob('*.png'))): f.chmod(modes[i%5])
    def state(dst): return {k:(v, (dst/k).stat().st_mode) for k,v in tree(dst).items() if k!='report.csv'}
    want,real,exists,refused = run(dst=tmp_path/'want'),os.open,os.path.exists,[]
    def no(path, flags, *args, **kw):
        if flags&os.O_TMPFILE==os.O_TMPFILE and err!='no /proc':
            refused.append(path)
            raise OSError(err, os.strerror(err))
        return real(path, flags, *args, **kw)
    monkeypatch.setattr(os, 'open', no)
    if err=='no /proc': monkeypatch.setattr(os.path, 'exists', lambda p: not str(p).startswith('/proc') and exists(p))
    ends_like(run, want, tmp_path/'dst')
    assert state(tmp_path/'dst')==state(tmp_path/'want') and len(refused)==(err!='no /proc') # asked once

# ---- death at any moment

class Stub:
    "Stands in for `Predictor` where only the placing is tested: a label from the bytes of the file"
    batch_size = 4
    window = frame = None
    def __init__(self, lf, **choices): self.labels = lf.labels
    def predict(self, paths, load):
        import numpy as np
        from mednist_fastai.images import ImageError, NotAnImageError
        from mednist_fastai.infer import Prediction
        for f in paths:
            with suppress(ImageError): load(f, 64) # reads it for its copy, whatever is in it
            h = hashlib.sha256(Path(f).read_bytes()).digest()
            p = np.full(6, .02, np.float32)
            p[h[0]%3] = .9 if h[1]%4 else .7
            yield Prediction(f, None, None, NotAnImageError(f, 'no image')) if f.endswith('.txt') else Prediction(f, p, p, None)

def in_child(src, dst, lf, move, die=0, stub=Stub, **kw):
    "Sort in a forked child that is gone before its `die`-th change of the disk (half way through, where that is a line of the journal); did it get through?"
    if (pid := os.fork())==0:
        n = [0]
        def now():
            n[0] += 1
            return n[0]==die
        def dies(f):
            def g(*args, **kw):
                if now(): os._exit(9)
                return f(*args, **kw)
            return g
        real = sort._Journal._write
        def write(self, lines):
            if now():
                self.f.write(b'{"path": "half a li')
                self.f.flush()
                os._exit(9)
            real(self, lines)
        for o in 'link','unlink','replace','utime','chmod','fchmod','mkdir': setattr(os, o, dies(getattr(os, o)))
        sort._Journal._write,sort.Predictor = write,stub
        code = 1
        try:
            classify_folder(src, dst, lf, move=move, progress=False, **kw)
            code = 0
        finally: os._exit(code)
    return {0:True, 9:False}[os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])]

def make_source(src):
    for i in range(14):
        f = src/f'd{i%3}'/f'{i%4}.png'
        f.parent.mkdir(parents=True, exist_ok=True)
        f.write_bytes(f'image {i}'.encode())
        os.utime(f, ns=(10**18, 10**18+i))
    (src/'d0/notes.txt').write_text('text')
    os.utime(src/'d0/notes.txt', ns=(10**18, 10**18))

def crash(learner, path, move, **kw):
    "Let runs die at every change of the disk in turn; what the next one leaves must be what an undisturbed one leaves"
    import pandas # once, rather than in every child
    lf,src,dst = open_learner(learner),Path(path)/'src',Path(path)/'dst'
    def reset():
        for o in src,dst: shutil.rmtree(o, ignore_errors=True)
        make_source(src)
    def links(): return sorted(o.stat().st_nlink for o in dst.glob('*/*'))
    def state(): return tree(src),tree(dst),links(),sorted(os.listdir(dst/sort.STATE)),os.listdir(dst/sort.STATE/'tmp')
    reset()
    files = sorted(v for v in tree(src).values())
    assert in_child(src, dst, lf, move, **kw)
    want = state()
    for n in range(1, 1000):
        reset()
        through = in_child(src, dst, lf, move, die=n, **kw)
        left = [v for f,v in (tree(src)|{f'dst/{k}':v for k,v in tree(dst).items() if k!='report.csv'}).items()]
        assert set(files)==set(left), n # nothing lost, and no half file under a final name
        assert in_child(src, dst, lf, move, **kw) and state()==want, n
        if through: break
    reset()
    for k in range(1, 1000): # one folder, and every run dies a little later than the one before
        if in_child(src, dst, lf, move, die=k, **kw): break
    assert state()==want
    print(n)

@posix
@pytest.mark.skipif(sys.platform=='darwin', reason='forking is not safe there')
@pytest.mark.parametrize('move', ['copy','move'])
def test_dies_at_every_change_of_the_disk(tmp_path, tiny, move):
    res = subprocess.run([sys.executable, __file__, 'crash', tiny, tmp_path, move], capture_output=True, text=True)
    assert res.returncode==0, res.stderr[-3000:]
    assert int(res.stdout)>40

KILL = 'import sys; from mednist_fastai.sort import classify_folder; classify_folder(*sys.argv[1:4], move=sys.argv[4]=="move", batch_size=8, progress=False)'

@posix
@pytest.mark.parametrize('move', ['copy','move'])
def test_sigkill(tmp_path, tiny, phantom_files, move):
    "The real thing: a process is killed at random moments of its work"
    src,dst,rng = tmp_path/'src',tmp_path/'dst',random.Random(move)
    def reset():
        for o in src,dst: shutil.rmtree(o, ignore_errors=True)
        for i,f in enumerate(phantom_files):
            to = src/str(i%7)/f'{i%50:02}.png'
            to.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(f, to)
            os.utime(to, ns=(10**18+i, 10**18+i))
    def sort_it(): return classify_folder(src, dst, tiny, move=move=='move', batch_size=8, progress=False)
    reset()
    files,want = sorted(tree(src).values()),sort_it()
    state = tree(src),tree(dst)
    for _ in range(2):
        reset()
        stop = rng.randrange(1, 250)
        p = subprocess.Popen([sys.executable, '-c', KILL, src, dst, tiny, move])
        while p.poll() is None and sum(len(fs) for d,_,fs in os.walk(dst) if sort.STATE not in d) < stop: time.sleep(.001)
        p.kill()
        p.wait()
        left = [*tree(src).values(), *(v for k,v in tree(dst).items() if k!='report.csv')]
        assert set(left)==set(files)
        same_frame(sort_it(), want)
        assert (tree(src),tree(dst))==state
        no_debris(dst)

if __name__=='__main__' and sys.argv[1:2]==['crash']: crash(*sys.argv[2:4], move=sys.argv[4]=='move', min_confidence=.8)
