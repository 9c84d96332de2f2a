"""Faults, for real: processes that are killed, disks that are full, input of every bad kind. No file is lost or mixed up, and the report says what is so.

Everything here goes through `classify_folder` and `mednist-sort` as users have them; processes are processes, disks are disks. `pytest tests` does a share of it,
`make faults` (MEDNIST_FASTAI_FAULTS=full) all of it.
"""
import csv, hashlib, json, os, random, re, shutil, signal, stat, subprocess, sys, time
from collections import Counter
from pathlib import Path
import pytest
from corpus import DEVICES, GREY, KINDS, RGB, encode, half, make_corpus
from mednist_fastai import sort
from mednist_fastai.learner import KEY, LearnerError, LearnerFormatError, LearnerNotFoundError, _config_digest, file_digest
from mednist_fastai.sort import SortError, classify_folder, read_report
from test_sort import CLASSES, same_frame
from test_sort_multilabel import make_learner

pytestmark = pytest.mark.skipif(os.name=='nt', reason='signals, links and mounts of POSIX systems')
FULL = os.environ.get('MEDNIST_FASTAI_FAULTS')=='full'
def share(few, all): return all if FULL else few

full_only = pytest.mark.skipif(not FULL, reason='make faults')
SORT = str(Path(sys.executable).parent/'mednist-sort')

# ---- what a folder holds

def look(path):
    "What is at `path`: digest, time and permissions of a file, or its kind"
    s = os.lstat(path)
    if stat.S_ISLNK(s.st_mode): return 'link',os.readlink(path)
    if not stat.S_ISREG(s.st_mode): return ('special',s.st_mode)
    return sha(path),s.st_mtime_ns,stat.S_IMODE(s.st_mode)

def sha(path):
    with open(path, 'rb') as f: return hashlib.sha256(f.read() if os.fstat(f.fileno()).st_size<1<<30 else f.read(1<<20)).hexdigest() # of the sparse one the beginning

def walk(folder, leave_out=()):
    "Everything below `folder` that is no folder, links not followed, found without the package's own code"
    res,todo = [],[os.fspath(folder)]
    while todo:
        with os.scandir(todo.pop()) as it:
            for e in it:
                if not e.is_dir(follow_symlinks=False): res.append(e.path)
                elif e.name not in leave_out: todo.append(e.path)
    return res

def snapshot(folder, leave_out=()): return {os.path.relpath(o, folder):look(o) for o in walk(folder, leave_out)}
def placed(dst): return {k:v for k,v in snapshot(dst, (sort.STATE,)).items() if os.sep in k} if dst.exists() else {} # what is in folders of classes
def count(dst):
    "How many files are placed so far"
    try: return sum(len(os.listdir(o.path)) for o in os.scandir(dst) if o.name!=sort.STATE and o.is_dir())
    except FileNotFoundError: return 0
def text(path): return os.fspath(path).encode('utf-8', 'backslashreplace').decode() # how a report writes a name that is no text

class Inbox:
    "300 pictures, all different, and three files that are none; older than now, so that times can be compared"
    def __init__(self, root, files, learner, dst=None):
        self.src,self.dst,self.learner = root/'src',dst or root/'dst',learner
        for i,f in enumerate(files): self.put(f'day{i%7}/{i%50:02}.png', Path(f).read_bytes()+b'%d'%i, i)
        for i,(name,data) in enumerate({'day0/notes.txt':b'text', 'day3/empty.png':b'', 'zz-cut.png':encode(GREY)[:500]}.items()): self.put(name, data, 1000+i)
        self.n,self.before = len(files),snapshot(self.src)

    def put(self, name, data, i):
        to = self.src/name
        to.parent.mkdir(parents=True, exist_ok=True)
        to.write_bytes(data)
        if i%5==0: to.chmod(0o640)
        os.utime(to, ns=(10**18+i, 10**18+i*1001))

    def sort(self, **kw): return classify_folder(self.src, self.dst, self.learner, **{'progress':False, 'batch_size':8, **kw})
    def command(self, *args): return [SORT, self.src, self.dst, self.learner, '--quiet', '--batch-size', '8', *args]
    def start(self, *args, **kw): return subprocess.Popen(self.command(*args), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **kw)
    def outcome(self):
        "All that a run leaves, in words that are the same wherever the folders are"
        state = self.dst/sort.STATE
        assert not list((state/'tmp').iterdir())
        report = (self.dst/sort.REPORT).read_text(encoding='utf-8').replace(str(self.src), 'SRC').replace(str(self.dst), 'DST')
        return snapshot(self.src),placed(self.dst),report,sorted(os.listdir(state)),sorted(os.listdir(self.dst))

    def nothing_lost(self, move=False, twice=0):
        """Each file of the beginning is there once, whole, with its time and permissions: in `src`, or (move) in `dst`. A copy is whole too, and there at most once.
        Between two system calls of a move a file has two names; `twice` says how many files may, where those are copies on two disks rather than one file."""
        here,there = snapshot(self.src),placed(self.dst)
        known = {v:k for k,v in self.before.items()}
        assert len(known)==len(self.before) and not Counter(there.values())-Counter([*known]) # nothing partial, changed or doubled under a final name
        assert set(here.items())<=set(self.before.items())
        if not move: assert here==self.before
        at = {v:k for k,v in there.items()}
        assert {*here.values(), *at}==set(known)
        both = [k for k,v in here.items() if v in at] if move else []
        other = [k for k in both if not os.path.samefile(self.src/k, self.dst/at[here[k]])]
        assert len(other)<=twice, other
        return len(there)

@pytest.fixture
def inbox(tmp_path, phantom_files, tiny):
    "Makes one `Inbox` after another, each in a folder of its own"
    made = []
    def _inbox(dst=None, n=300):
        root = tmp_path/f'{len(made):03}'
        made.append(Inbox(root, phantom_files[:n], tiny, dst and dst/f'{len(made):03}'))
        return made[-1]
    return _inbox

@pytest.fixture(scope='module')
def wanted(tmp_path_factory, phantom_files, tiny):
    "What an undisturbed `mednist-sort` leaves, and how long it took: for copying and for moving"
    res = {}
    for how in 'copy','move':
        box,t = Inbox(tmp_path_factory.mktemp(how), phantom_files, tiny),time.monotonic()
        subprocess.run(box.command(*['--move'][:how=='move']), check=True, capture_output=True)
        res[how] = box.outcome(),time.monotonic()-t,(box.dst/sort.STATE/'journal.jsonl').stat().st_size
        assert box.nothing_lost(how=='move')==300 and len(read_report(box.dst))==303
    return res

# ---- 1. killed

def wait_for(p, cond, slow=0):
    "Let the process `p` run until `cond()`, or to its end"
    while p.poll() is None and not cond(): time.sleep(slow)

# runs a command of Python, and stops it in its tracks before its n-th link. Whoever polls from outside may come too late: 300 small files are placed within a few time slices
STANDS = '''import os, runpy, signal, sys
left = int(sys.argv[1])
def count(event, args):
    global left
    left -= event=='os.link'
    if event=='os.link' and not left: os.kill(os.getpid(), signal.SIGSTOP)
sys.addaudithook(count)
sys.argv = sys.argv[2:]
runpy.run_path(sys.argv[0], run_name='__main__')'''

def stand_before(n, command, **kw):
    "Start the command; it stands still, all of its threads, when it is about to make its `n`-th link, and a link is how a file is placed"
    p = subprocess.Popen([sys.executable, '-c', STANDS, str(n), *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **kw)
    assert os.WIFSTOPPED(os.waitpid(p.pid, os.WUNTRACED)[1])
    return p

def kill_before(n, command):
    p = stand_before(n, command)
    p.kill()
    p.communicate()
    assert p.returncode==-signal.SIGKILL

def at_a_moment(box, what, rng, seconds, journal, *args, **kw):
    "Start a run, and wait for a random moment in its life: by the clock, by its journal, by the files it has placed (it stands still then), or after the last one"
    wait,k,b = rng.uniform(0, seconds),rng.randrange(1, box.n),rng.randrange(1, journal)
    if what=='placed': return stand_before(k, box.command(*args), **kw)
    p,end = box.start(*args, **kw),time.monotonic()+wait
    def written():
        try: return (box.dst/sort.STATE/'journal.jsonl').stat().st_size>=b
        except FileNotFoundError: return False
    if what=='clock': wait_for(p, lambda: time.monotonic()>=end, .002)
    if what=='journal': wait_for(p, written)
    if what=='end':
        wait_for(p, lambda: count(box.dst)>=box.n)
        time.sleep(rng.uniform(0, .08)) # the last line of the journal, the report, the end of the process
    return p

def kill(*args, **kw):
    "Start a run and kill it at a random moment; did it die of that?"
    p = at_a_moment(*args, **kw)
    p.kill()
    p.communicate()
    assert p.returncode in (0, -signal.SIGKILL), p.returncode
    return p.returncode!=0

MOMENTS = 'clock','journal','placed','end'

@pytest.mark.parametrize('how', ['copy','move'])
def test_killed(inbox, wanted, how):
    "After SIGKILL at any moment nothing is lost or half there, and the next run ends as one that nobody disturbed"
    rng,died = random.Random(how),0
    for i in range(100):
        box = inbox()
        for again in range(1+(FULL and i%5==4)*2): # some are killed three times over
            died += kill(box, MOMENTS[(i+again)%4], rng, *wanted[how][1:], *['--move'][:how=='move'])
            box.nothing_lost(how=='move')
        df = box.sort(move=how=='move')
        assert box.outcome()==wanted[how][0] and len(df)==303
        box.nothing_lost(how=='move')
        if died>=share(2, 13) and i+1>=share(4, 25): break
    assert died>=share(2, 13) # or the moments were badly chosen, and nothing was tested

@pytest.fixture
def other_disk(tmp_path):
    "A folder on another file system than `tmp_path`"
    import tempfile
    if not os.access('/dev/shm', os.W_OK) or os.stat('/dev/shm').st_dev==tmp_path.stat().st_dev: pytest.skip('one file system only')
    with tempfile.TemporaryDirectory(dir='/dev/shm') as d: yield Path(d)

def test_killed_while_moving_to_another_disk(inbox, wanted, other_disk):
    rng,died = random.Random('disk'),0
    for i in range(share(2, 10)):
        box = inbox(other_disk)
        died += kill(box, ('placed','journal','clock')[i%3], rng, *wanted['move'][1:], '--move')
        box.nothing_lost(True, twice=64)
        box.sort(move=True)
        assert box.outcome()==wanted['move'][0] and box.nothing_lost(True)==300
    assert died>=share(1, 5)

def test_a_damaged_journal_loses_nothing(inbox):
    "Bytes of the journal of a half-done move are flipped: the next run refuses, or goes on; whatever it decides, every file is still there, whole and once"
    rng,refused = random.Random(3),0
    for i in range(share(6, 60)):
        box = inbox(n=40)
        if i%2: kill_before(8+i%20, box.command('--move', '--workers', '1'))
        else: box.sort()
        j = box.dst/sort.STATE/'journal.jsonl'
        b = bytearray(j.read_bytes())
        for _ in range(rng.choice([1,3,30])): b[rng.randrange(len(b))] = rng.randrange(256)
        j.write_bytes(b[:rng.randrange(len(b))] if i%3==2 else b)
        try: box.sort(move=True)
        except SortError: refused += 1
        here,there = snapshot(box.src),placed(box.dst)
        assert {o[:2] for o in (*here.values(), *there.values())}=={o[:2] for o in box.before.values()}
    assert refused

# ---- 2. input of every bad kind

def without_powers():
    "In a child before it starts: root without the right to read and write everything. Its id and its files stay, so that it can still start Python"
    if os.geteuid(): return
    import ctypes
    for cap in 1,2,3: # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH, CAP_FOWNER
        if ctypes.CDLL(None).prctl(24, cap, 0, 0, 0): os._exit(77) # PR_CAPBSET_DROP

@pytest.fixture(scope='module')
def plain_user(tmp_path_factory):
    "Keywords of `subprocess` that make a child an ordinary user"
    kw,f = dict(preexec_fn=without_powers),tmp_path_factory.mktemp('plain')/'file'
    f.touch(0)
    try: res = subprocess.run([sys.executable, '-c', 'import sys; open(sys.argv[1])', f], capture_output=True, text=True, **kw)
    except subprocess.SubprocessError as e: pytest.skip(f'no ordinary user to be had: {e}')
    if 'PermissionError' not in res.stderr: pytest.skip('no ordinary user to be had')
    return kw

class Corpus:
    "The corpus between good pictures, sorted by two processes: copied, then moved"
    def __init__(self, root, files, learner):
        self.root,self.src = root,root/'src'
        self.kinds = make_corpus(self.src)
        self.good = {}
        for d in '000','m','zzz': # before, between and behind
            for i,f in enumerate(files[::30]):
                to = self.src/d/f'{i}.png'
                to.parent.mkdir(exist_ok=True)
                to.write_bytes(Path(f).read_bytes()+d.encode()+b'%d'%i)
                self.good[str(to)] = Path(f).parent.name
        self.found,self.before = walk(self.src),snapshot(self.src)
        t = time.monotonic()
        self.copied = self.process(learner, 'copied')
        self.seconds,self.after_copy = time.monotonic()-t,snapshot(self.src)
        self.again = self.process(learner, 'copied')
        self.moved = self.process(learner, 'moved', '--move', '--strict')
        self.df = {o:read_report(root/o) for o in ('copied','moved')}

    def process(self, learner, dst, *args):
        p = subprocess.run([SORT, self.src, self.root/dst, learner, *args], capture_output=True, text=True, timeout=300)
        p.report = (self.root/dst/sort.REPORT).read_bytes() if (self.root/dst/sort.REPORT).exists() else None
        return p

@pytest.fixture(scope='module')
def corpus(tmp_path_factory, phantom_files, tiny): return Corpus(tmp_path_factory.mktemp('corpus'), phantom_files, tiny)

def test_size_of_the_corpus(): assert len(KINDS)>=100

@pytest.mark.parametrize('name', [*KINDS, *DEVICES])
def test_kind(corpus, name):
    "A row a file, of the right status, with a reason where it stayed; whatever did not get sorted was left alone"
    if name not in corpus.kinds: pytest.skip('no such file can be made here')
    k = corpus.kinds[name]
    for how,df in corpus.df.items():
        rows = df[df.path.str.startswith(str(corpus.src/name)+os.sep)]
        assert len(rows)==k.rows and set(rows.status)<=({k.status,'review'} if k.status=='sorted' else {k.status}), (how, rows.status.tolist(), rows.error.tolist())
        if k.status=='sorted': assert (rows.error=='').all() and ((rows.status=='review')==(rows.doubts!='')).all() and all(map(os.path.isfile, map(os.fsencode, real(corpus, how, rows)))) and rows.label.isin(CLASSES).all()
        else:
            assert (rows.error!='').all() and (rows.destination=='').all() and (rows.label=='').all() and rows.confidence.isna().all()
            assert {o:v for o,v in snapshot(corpus.src).items() if o.startswith(name+os.sep)}=={o:v for o,v in corpus.before.items() if o.startswith(name+os.sep)}

def real(corpus, how, rows):
    "The paths behind the texts of the column `destination`"
    at = {text(o):o for o in walk(corpus.root/how, (sort.STATE,))}
    return [at[o] for o in rows.destination]

def test_rows_are_the_files_found(corpus):
    for how,df in corpus.df.items():
        assert sorted(df.path)==sorted(map(text, corpus.found)) and len(df)==len(corpus.found)>250, how
        assert list(df.path)==sorted(df.path, key=lambda o: o.replace(os.sep, '/'))

def test_digests_of_sources_and_destinations(corpus):
    name = {text(o):os.path.relpath(o, corpus.src) for o in corpus.found}
    for how,df in corpus.df.items():
        done = df[df.destination!='']
        assert done.destination.is_unique and len(done)>100
        for path,to in zip(done.path, real(corpus, how, done)): assert look(to)==corpus.before[name[path]], path
        assert len(placed(corpus.root/how))==len(done) # and nothing else is there
    assert corpus.after_copy==corpus.before
    left = {name[o] for o in corpus.df['moved'].query('destination==""').path}
    assert snapshot(corpus.src)=={k:v for k,v in corpus.before.items() if k in left}

def test_good_pictures_among_bad_ones(corpus, tiny):
    "What the network says of a picture does not depend on its neighbours in the batch"
    from mednist_fastai.infer import predict_files
    df = corpus.df['copied'].set_index('path').loc[list(corpus.good)]
    probs,_,errors = predict_files(df.destination, tiny)
    assert len(df)==30 and not any(errors) and abs(df[[f'p_{o}' for o in CLASSES]].to_numpy()-probs).max()<1e-4
    assert (df.label==list(corpus.good.values())).mean()>.6 # those of a learner that has learned something

def test_exit_codes_and_counts(corpus):
    left,n = int((corpus.df['copied'].destination=='').sum()),len(corpus.found)
    assert corpus.copied.returncode==0 and f'{left:,} of {n:,} files stayed' in corpus.copied.stdout
    assert corpus.moved.returncode==3 and f'{left:,} of {n:,} files stayed' in corpus.moved.stdout
    for p in corpus.copied,corpus.again,corpus.moved: assert 'Traceback' not in p.stderr, p.stderr
    assert corpus.again.returncode==0 and corpus.again.report==corpus.copied.report

def test_libraries_say_nothing(corpus):
    "What a decoder has to say of a file is in the report, if anywhere"
    for p in corpus.copied,corpus.again,corpus.moved: assert 'Warning' not in p.stderr, p.stderr

def test_the_corpus_takes_no_time(corpus): assert corpus.seconds<60

FORMULA = re.compile('[=+\\-@\t\r\n＝＋－＠]')

def test_csv_survives_every_name(corpus):
    import pandas as pd
    for how in 'copied','moved':
        at = corpus.root/how/sort.REPORT
        with open(at, encoding='utf-8', newline='') as f: head,*rows = csv.reader(f)
        assert {len(o) for o in rows}=={len(head)} and sorted(o[0] for o in rows)==sorted(map(text, corpus.found))
        plain = pd.read_csv(at, keep_default_na=False)
        assert plain.path.tolist()==[o[0] for o in rows] and plain.destination.tolist()==corpus.df[how].destination.tolist()
        assert not [c for r in (head,*rows) for c in r if FORMULA.match(c)]

def test_no_cell_is_a_formula(tmp_path, tiny, phantom_files):
    "Class names are the one text that may begin with anything: those of a learner from elsewhere"
    evil = dict(zip(CLASSES, ['=1+1','+2','-3','@SUM(A1)','\t=4',"'=5"]))
    learner = edited(tiny, tmp_path/'evil', lambda c: c.update(label_names=[evil[o] for o in c['label_names']]))
    df,plain = (classify_folder(Path(phantom_files[0]).parent.parent, tmp_path/o, l, progress=False) for o,l in [('evil-sorted',learner),('sorted',tiny)])
    done = plain.status=='sorted'
    assert df.label[done].tolist()==[evil[o] for o in plain.label[done]] and set(df.label[done])==set(evil.values())
    same_frame(read_report(tmp_path/'evil-sorted'), df)
    with open(tmp_path/'evil-sorted'/sort.REPORT, encoding='utf-8', newline='') as f: cells = [c for r in csv.reader(f) for c in r]
    assert len(cells)>3000 and not [c for c in cells if FORMULA.match(c)]
    for o in df[done].itertuples(): assert Path(o.destination).is_file() and Path(o.destination).parent.parent==tmp_path/'evil-sorted'

@full_only
@pytest.mark.parametrize('name', ['jpeg','webp','png','gif','dicom'])
def test_sparse_files(tmp_path, tiny, name):
    "A download that has its whole length from the beginning, filled with noughts: refused without reading gigabytes into memory"
    (tmp_path/'src').mkdir()
    with open(tmp_path/'src'/name, 'wb') as f:
        f.write(bytes(128)+b'DICM' if name=='dicom' else half(encode(RGB, name)))
        f.truncate(1<<30)
    code = 'import resource, sys; resource.setrlimit(resource.RLIMIT_CPU, (20, 20)); from mednist_fastai.sort import classify_folder\n' \
           'print(*classify_folder(*sys.argv[1:4], progress=False).status, next(int(o.split()[1])//1024 for o in open("/proc/self/status") if o.startswith("VmHWM")))'
    p = subprocess.run([sys.executable, '-c', code, tmp_path/'src', tmp_path/'dst', tiny], capture_output=True, text=True)
    assert p.returncode==0, f'exit code {p.returncode}: {p.stderr[-500:]}'
    status,mb = p.stdout.split()
    assert (status=='unreadable' or name=='webp') and int(mb)<700 # noughts are a possible end of the pixels of a WebP: it holds no checksums

# ---- what may not be read or written, and what changes meanwhile

def test_permissions(tmp_path, tiny, phantom_files, plain_user):
    "Files and folders that may not be read, listed or entered cost a row each; from a folder that may not be written nothing is moved"
    box = Inbox(tmp_path, phantom_files[:60], tiny)
    locked = {'day1/01.png':0, 'day2':0, 'day4':0o444, 'day5':0o111, 'day6':0o555}
    want = {}
    modes = {o:stat.S_IMODE((box.src/o).stat().st_mode) for o in locked}
    for o,mode in locked.items(): (box.src/o).chmod(mode)
    for i,f in enumerate(sorted(box.before)):
        p,top = box.src/f,f.split('/')[0]
        if top=='day2' or top=='day5': want[str(box.src/top)] = 'skipped' # one row for a folder that can't be listed
        elif top=='day4': want[str(p)] = 'skipped' # listed, but nothing can be known of what is in it
        else: want[str(p)] = 'unreadable' if f in ('day1/01.png','day0/notes.txt','day3/empty.png','zz-cut.png') else 'sorted'
    try:
        res = {o:subprocess.run([SORT, box.src, tmp_path/o, tiny, *args], capture_output=True, text=True, **plain_user) for o,args in [('copied',()), ('moved',('--move','--strict'))]}
    finally:
        for o,mode in modes.items(): (box.src/o).chmod(mode)
    assert res['copied'].returncode==0 and res['moved'].returncode==3, [o.stderr for o in res.values()]
    got = {o:dict(zip(*read_report(tmp_path/o)[['path','status']].T.to_numpy())) for o in res}
    assert got['copied']==want and Counter(want.values())['skipped']>8
    assert got['moved']=={k:'skipped' if k.startswith(str(box.src/'day6')) else v for k,v in want.items()}
    assert (box.src/'day6').is_dir() and len(walk(box.src/'day6'))==sum(o.startswith('day6/') for o in box.before)
    box.dst = tmp_path/'moved' # now all of it may
    df = box.sort(move=True, batch_size=None)
    assert (df.status=='sorted').sum()==60 and box.nothing_lost(True)==60

def test_destination_that_may_not_be_written(inbox, plain_user):
    "One line, exit code 1, nothing touched; half way there is no difference"
    box = inbox(n=60)
    box.sort()
    done = box.outcome()
    lost = next(iter(placed(box.dst)))
    (box.dst/lost).unlink()
    folders = [box.dst, *(o for o in box.dst.rglob('*') if o.is_dir())]
    for o in folders: o.chmod(0o555)
    try: p = subprocess.run(box.command(), capture_output=True, text=True, **plain_user)
    finally:
        for o in folders: o.chmod(0o755)
    assert p.returncode==1 and 'Traceback' not in p.stderr and len(p.stderr.splitlines())==1 and 'Permission denied' in p.stderr
    assert not (box.dst/lost).exists() and snapshot(box.src)==box.before
    box.sort()
    assert box.outcome()==done

def grow(p):
    with open(p, 'ab') as f: f.write(b'more')
def shrink(p): os.truncate(p, os.path.getsize(p)//2)
def replace(p):
    s = os.stat(p)
    Path(f'{p}~').write_bytes(b'x'*s.st_size) # as long as before
    os.replace(f'{p}~', p)
def becomes(make):
    def _f(p):
        os.unlink(p)
        make(p)
    return _f

@pytest.mark.parametrize('how', ['copy','move'])
def test_files_that_change_during_the_run(inbox, how):
    "The process stands still while the files that it has looked at, and not yet placed, are meddled with: those stay where they are and are said to; a second run takes them as they are by then"
    box,ways = inbox(),[grow,shrink,replace,os.unlink,becomes(os.mkdir),becomes(os.mkfifo),becomes(lambda p: os.symlink('/etc/passwd', p))]
    p = stand_before(5, [SORT, box.src, box.dst, box.learner, '--quiet', '--batch-size', '400', *['--move'][:how=='move']])
    here = {v[0] for v in placed(box.dst).values()}
    todo = [k for k,v in sorted(box.before.items()) if v[0] not in here and k.startswith('day') and k[5].isdigit()]
    for i,k in enumerate(todo): ways[i%len(ways)](box.src/k)
    p.send_signal(signal.SIGCONT)
    err = p.communicate()[1]
    assert p.returncode==0 and len(todo)>20, err
    df,files = read_report(box.dst).set_index('path'),placed(box.dst)
    assert len(df)==303 and df.index.is_unique and set(df.index)=={str(box.src/o) for o in box.before}
    done = df[df.status=='sorted']
    assert sorted(done.destination)==sorted(str(box.dst/o) for o in files)
    assert (df.status[[str(box.src/o) for o in todo]]=='sorted').sum()<=8 # those whose copy had begun
    for path,to in done.destination.items(): assert files[os.path.relpath(to, box.dst)]==box.before[os.path.relpath(path, box.src)], path
    for o in df[df.status!='sorted'].itertuples(): assert o.error and not o.destination
    lost = {str(box.src/o) for o in box.before}-set(walk(box.src))-set(done.index)
    assert lost<={str(box.src/o) for i,o in enumerate(todo) if ways[i%len(ways)] in (os.unlink,ways[4])} # what we took away ourselves
    df = box.sort(move=how=='move')
    last = dict(zip(df.path, df.status)) # a file that changed after it was copied has two rows
    status = {way:Counter(last.get(str(box.src/o), 'no row') for i,o in enumerate(todo) if ways[i%len(ways)]==way).most_common(1)[0][0] for way in ways}
    assert [*status.values()]==['sorted','unreadable','unreadable','no row','no row','skipped','skipped']
    for o in df[df.status=='sorted'].itertuples(): assert Path(o.destination).is_file()

# ---- 3. disks

class Disk:
    "A small disk of its own"
    def __init__(self, path): self.path = path
    def options(self, how): subprocess.run(['mount','-o',f'remount,{how}', self.path], check=True)

@pytest.fixture
def disk(tmp_path):
    "Mounts a small disk, and unmounts it behind the test"
    made = []
    def _disk(how):
        path = tmp_path/f'disk{len(made)}'
        path.mkdir()
        res = subprocess.run(['mount','-t','tmpfs','-o',how,'tmpfs',path], capture_output=True, text=True) if shutil.which('mount') else None
        if res is None or res.returncode: pytest.skip('no disk may be mounted here')
        made.append(path)
        return Disk(path)
    yield _disk
    for o in made:
        if subprocess.run(['umount', o], capture_output=True).returncode: subprocess.run(['umount','-l', o], check=True)

ROOM = 'size=100m,nr_inodes=100000'

@pytest.mark.parametrize('how', ['copy','move'])
@pytest.mark.parametrize('full', share(['size=600k','nr_inodes=150'], ['size=600k','nr_inodes=150','size=8k','size=1m','nr_inodes=3']))
def test_full_disk(inbox, disk, wanted, full, how):
    "Bytes or names run out: a clean stop, nothing lost; with more room the run ends as if nothing had been"
    d = disk(full)
    box,args = inbox(d.path),['--move'][:how=='move']
    if FULL or full=='size=600k':
        p = subprocess.run(box.command(*args), capture_output=True, text=True)
        assert p.returncode==1 and 'Traceback' not in p.stderr and len(p.stderr.splitlines())==1 and 'nothing is lost' in p.stderr, p.stderr
    else:
        with pytest.raises(SortError, match='nothing is lost'): box.sort(move=how=='move')
    n = box.nothing_lost(how=='move', twice=64)
    assert n<300 and (n>20 or full in ('size=8k','nr_inodes=3'))
    with pytest.raises(SortError, match='nothing is lost'): box.sort(move=how=='move') # as full as before
    assert n<=box.nothing_lost(how=='move', twice=64)<300
    d.options(ROOM)
    df = box.sort(move=how=='move')
    assert box.outcome()==wanted[how][0] and len(df)==303 and box.nothing_lost(how=='move')==300

@full_only
@pytest.mark.parametrize('how', ['copy','move'])
def test_no_room_for_temporary_files(tmp_path, disk, tiny, phantom_files, how):
    "The bookkeeping of many files is on a disk of its own, and that is full: a clean stop, and nothing lost"
    d,src,dst,n,pic = disk('size=64k'),tmp_path/'src',tmp_path/'dst',40_000,Path(phantom_files[0]).read_bytes()
    src.mkdir()
    for i in range(n): (src/f'{i:06}.png').write_bytes(pic+b'%d'%i)
    args = [SORT, src, dst, tiny, '--quiet', *['--move'][:how=='move']]
    p = subprocess.run(args, capture_output=True, text=True, env=os.environ|dict.fromkeys(['SQLITE_TMPDIR','TMPDIR'], str(d.path)))
    assert p.returncode==1 and 'Traceback' not in p.stderr and len(p.stderr.splitlines())==1 and 'temporary files' in p.stderr, p.stderr
    assert 1000<count(dst)<n and len(os.listdir(src))==(n-count(dst) if how=='move' else n)
    assert subprocess.run(args).returncode==0
    assert len(read_report(dst))==count(dst)==n and {int(Path(o).read_bytes().removeprefix(pic)) for o in walk(dst, (sort.STATE,)) if o.endswith('.png')}=={*range(n)}

@pytest.mark.parametrize('how', ['copy','move'])
def test_disk_that_grows_step_by_step(inbox, disk, wanted, how):
    "However far a run gets, the next one goes on from there"
    d,rng,stops,kb = disk('size=8k'),random.Random(how),0,8
    box = inbox(d.path)
    while True:
        try: box.sort(move=how=='move'); break
        except SortError as e: assert 'nothing is lost' in str(e)
        box.nothing_lost(how=='move', twice=64)
        stops,kb = stops+1,kb+rng.randrange(*share((300,500), (4,160)))
        d.options(f'size={kb}k')
        assert kb<50_000
    assert box.outcome()==wanted[how][0] and stops>=share(3, 10)

@pytest.mark.parametrize('how', ['copy','move'])
def test_read_only_disk(inbox, disk, wanted, how):
    "From the beginning, and half way: a clean stop before anything is touched"
    d = disk(ROOM)
    box,args = inbox(d.path),['--move'][:how=='move']
    box.dst.mkdir()
    d.options('ro')
    with pytest.raises(SortError, match='[Rr]ead-only'): box.sort(move=how=='move')
    d.options('rw')
    assert snapshot(box.src)==box.before and not walk(box.dst)
    kill_before(50, box.command(*args))
    n = box.nothing_lost(how=='move', twice=64)
    d.options('ro')
    p = subprocess.run(box.command(*args), capture_output=True, text=True)
    assert p.returncode==1 and 'Traceback' not in p.stderr and len(p.stderr.splitlines())==1 and 'ead-only' in p.stderr, p.stderr
    assert box.nothing_lost(how=='move', twice=64)==n
    d.options('rw')
    box.sort(move=how=='move')
    assert box.outcome()==wanted[how][0]

def test_full_source_disk(inbox, disk, wanted, tmp_path, phantom_files, tiny):
    "Nothing is needed on the disk of the sources, so a full one can be emptied"
    d = disk('size=2m,nr_inodes=1000')
    box = Inbox(d.path/'000', phantom_files, tiny, tmp_path/'dst')
    with pytest.raises(OSError), open(d.path/'filler', 'wb', buffering=0) as f:
        while f.write(bytes(4096))==4096: pass
    box.sort(move=True)
    assert box.outcome()==wanted['move'][0]

# ---- two runs at once

@pytest.mark.parametrize('how', ['copy','move'])
def test_second_run_refuses(inbox, wanted, how):
    "The first one is stopped in its tracks, so that it certainly has the folder; the second says so and does nothing; the first ends well"
    box,args = inbox(),['--move'][:how=='move']
    a = stand_before(20, box.command(*args))
    try:
        before = snapshot(box.src),snapshot(box.dst)
        b = subprocess.run(box.command(*args), capture_output=True, text=True)
        assert b.returncode==1 and 'another run' in b.stderr and 'Traceback' not in b.stderr
        assert before==(snapshot(box.src),snapshot(box.dst))
    finally: a.send_signal(signal.SIGCONT)
    err = a.communicate()[1]
    assert a.returncode==0, err
    assert box.outcome()==wanted[how][0] and box.nothing_lost(how=='move')==300

@pytest.mark.parametrize('how', ['copy','move'])
def test_runs_at_once(inbox, wanted, how):
    "Several start together: at least one does the work, the others refuse or find it done"
    for _ in range(share(1, 5)):
        box = inbox()
        ps = [box.start(*['--move'][:how=='move']) for _ in range(share(3, 5))]
        errs = [o.communicate()[1] for o in ps]
        assert {o.returncode for o in ps}<={0,1} and any(o.returncode==0 for o in ps), errs
        for p,e in zip(ps, errs): assert 'Traceback' not in e and (p.returncode==0 or 'another run' in e), e
        assert box.nothing_lost(how=='move')==300
        if how=='copy' or not any(o.returncode for o in ps): assert box.outcome()[:2]==wanted[how][0][:2]
        box.sort(move=how=='move')
        assert box.outcome()==wanted[how][0]

# ---- Ctrl-C

def interruptible(): signal.signal(signal.SIGINT, signal.SIG_DFL) # a shell starts what it puts in the background with SIGINT ignored

@pytest.mark.parametrize('how', ['copy','move'])
def test_ctrl_c(inbox, wanted, how):
    "Gone at once; what is placed is in the report and the other way round; the next run ends as one that nobody stopped"
    rng,stopped = random.Random(how),0
    for i in range(share(2, 20)):
        box = inbox()
        p = at_a_moment(box, ('placed','placed','journal','clock')[i%4], rng, *wanted[how][1:], *['--move'][:how=='move'], preexec_fn=interruptible)
        t = time.monotonic()
        p.send_signal(signal.SIGINT)
        p.send_signal(signal.SIGCONT)
        if FULL and i%5==4: # an impatient one
            time.sleep(rng.uniform(0, .1))
            p.send_signal(signal.SIGINT)
        err = p.communicate(timeout=60)[1]
        assert time.monotonic()-t<5
        n = box.nothing_lost(how=='move')
        if p.returncode==130 and not (FULL and i%5==4):
            stopped += 1
            assert 'stopped' in err and 'Traceback' not in err, err
            if (box.dst/sort.REPORT).exists(): assert sorted(o for o in read_report(box.dst).destination if o)==sorted(str(box.dst/o) for o in placed(box.dst))
            else: assert n==0
        box.sort(move=how=='move')
        assert box.outcome()==wanted[how][0]
    assert stopped>=share(1, 8)

# ---- 4. names and numbers

def test_names_that_some_disks_take_for_the_same(tmp_path, tiny, phantom_files):
    "Letters of another case, composed and decomposed ones: no two files of a destination have names that any disk takes for the same"
    import unicodedata
    pic,names = Path(phantom_files[0]).read_bytes(),['a.PNG','A.png','a.png','A.PNG','\u00c4.png','A\u0308.png','\u00e4.png','a\u0308.PNG','stra\u00dfe.png','STRASSE.png','\ufb01.png','fi.png','\u212b.png','\u00c5.png']
    for move in False,True:
        src,dst,n = tmp_path/f'src{move}',tmp_path/f'dst{move}',0
        for d in 'one','One','two':
            (src/d).mkdir(parents=True)
            for o in names:
                if not (src/d/o).exists():
                    (src/d/o).write_bytes(pic+f'{d}/{o}'.encode())
                    n += 1
        before = Counter(v[0] for v in snapshot(src).values())
        df = classify_folder(src, dst, tiny, move=move, progress=False)
        assert len(df)==n>20 and (df.status=='sorted').all() and df.label.nunique()==1
        assert len({unicodedata.normalize('NFC', unicodedata.normalize('NFC', os.path.basename(o)).casefold()) for o in df.destination})==n
        assert Counter(v[0] for v in placed(dst).values())==before and (not move)==bool(walk(src))
        same_frame(classify_folder(src, dst, tiny, move=move, progress=False), df)

@pytest.mark.parametrize('how', ['copy','move'])
def test_one_folder_of_many(tmp_path, tiny, phantom_files, how):
    "All of them, each once, under its own name; a run is killed on the way; nothing is left to do afterwards"
    n,src,dst = share(3_000, 100_000),tmp_path/'src',tmp_path/'dst'
    pics = [Path(o).read_bytes() for o in phantom_files[:48]]
    src.mkdir()
    for i in range(n): (src/f'{i:06}.png').write_bytes(pics[i%48]+b'%d'%i)
    args = [SORT, src, dst, tiny, '--quiet', *['--move'][:how=='move']]
    kill_before(n//3, args)
    df = classify_folder(src, dst, tiny, move=how=='move', progress=False)
    assert len(df)==n and (df.status=='sorted').all() and df.path.tolist()==[str(src/f'{i:06}.png') for i in range(n)]
    assert [os.path.basename(o) for o in df.destination]==[f'{i:06}.png' for i in range(n)] and count(dst)==n
    assert len(os.listdir(src))==(0 if how=='move' else n)
    for i,o in enumerate(df.destination):
        with open(o, 'rb') as f: assert f.read()==pics[i%48]+b'%d'%i, o
    t = time.monotonic()
    same_frame(classify_folder(src, dst, tiny, move=how=='move', progress=False), df)
    assert time.monotonic()-t<n/500+3

def test_50_levels_deep(tmp_path, tiny, phantom_files):
    "A picture at each level; then on beyond what a path may hold, where a folder that can't be reached costs a row"
    at,d = os.open('.', os.O_RDONLY),tmp_path/'src'
    d.mkdir()
    src,pic,levels = d,Path(phantom_files[0]).read_bytes(),0
    os.chdir(d)
    try:
        for i in range(50+20):
            name = f'level-{i:02}-'+'x'*51
            os.mkdir(name)
            os.chdir(name)
            with open('scan.png', 'wb') as f: f.write(pic+b'%d'%i)
    finally:
        os.fchdir(at)
        os.close(at)
    res = {}
    for move in False,True:
        df = res[move] = classify_folder(src, tmp_path/f'dst{move}', tiny, move=move, progress=False)
        done,left = df[df.status=='sorted'],df[df.status!='sorted']
        assert len(done)>=50 and done.destination.is_unique and done.label.nunique()==1
        assert {Path(o).read_bytes() for o in done.destination}=={pic+b'%d'%i for i in range(len(done))}
        # the first folder that can't be reached; and the picture above it where the limit falls between the two
        assert len(left) in (1,2) and left.status.isin(['skipped','unreadable']).all() and (left.error!='').all()
    assert res[True].path.tolist()==res[False].path.tolist()

# ---- 5. learners

def edited(learner, to, change):
    "A copy of a learner folder with another configuration, whose own digest is right: what another version, or somebody else, might write"
    shutil.copytree(learner, to)
    config = json.loads((to/'config.json').read_text())
    change(config)
    for f in config[KEY]['sha256']:
        if f!='config.json' and (to/f).is_file(): config[KEY]['sha256'][f] = file_digest(to/f)
    config[KEY]['sha256']['config.json'] = _config_digest(config)
    (to/'config.json').write_text(json.dumps(config))
    return to

@pytest.fixture
def refuses(tmp_path, phantom_files):
    "Checks that a learner is refused before anything is touched"
    src,dst = tmp_path/'in',tmp_path/'sorted'
    src.mkdir()
    for i,f in enumerate(phantom_files[::50]): shutil.copy(f, src/f'{i}.png')
    before = snapshot(src)
    def _refuses(learner, errors=LearnerError, match=None, **kw):
        with pytest.raises(errors, match=match) as e: classify_folder(src, dst, learner, progress=False, move=True, **kw)
        assert snapshot(src)==before and not dst.exists() and str(e.value)
        return e.value
    _refuses.src,_refuses.dst = src,dst
    return _refuses

def test_flipped_bytes(refuses, tiny, tmp_path):
    "Wherever a file of the folder is damaged: refused, unless it says the same as before"
    bad,rng,hits = shutil.copytree(tiny, tmp_path/'bad'),random.Random(5),Counter()
    files = sorted(o for o in bad.rglob('*') if o.is_file())
    assert len(files)>=4
    for i in range(share(32, 200)):
        f = files[i%len(files)]
        whole = f.read_bytes()
        b = bytearray(whole)
        for _ in range(rng.choice([1,1,8,100])): b[rng.randrange(len(b))] ^= rng.randrange(1, 256)
        f.write_bytes(b)
        if f.name=='config.json' and same_json(b, whole): continue # white space became other white space
        refuses(bad)
        f.write_bytes(whole)
        hits[f.name] += 1
    assert len(hits)==len(files) and sum(hits.values())>=share(28, 190)
    p = subprocess.run([SORT, refuses.src, refuses.dst, bad, '--quiet'], capture_output=True, text=True)
    assert p.returncode==0, p.stderr # whole again
    f.write_bytes(b)
    p = subprocess.run([SORT, refuses.src, tmp_path/'not', bad, '--quiet'], capture_output=True, text=True)
    assert p.returncode==1 and len(p.stderr.splitlines())==1 and 'mednist-sort' in p.stderr and not (tmp_path/'not').exists()

def same_json(a, b):
    try: return json.loads(bytes(a))==json.loads(b)
    except ValueError: return False

def test_missing_files_and_odd_folders(refuses, tiny, tmp_path):
    for i,f in enumerate(sorted(os.listdir(tiny))):
        for what in 'gone','empty','cut','folder','link to nowhere','fifo':
            bad = shutil.copytree(tiny, tmp_path/f'{i}-{what}')
            whole = (bad/f).read_bytes()
            (bad/f).unlink()
            if what=='empty': (bad/f).touch()
            if what=='cut': (bad/f).write_bytes(whole[:-1])
            if what=='folder': (bad/f).mkdir()
            if what=='link to nowhere': (bad/f).symlink_to('nowhere')
            if what=='fifo': os.mkfifo(bad/f)
            if (what,f)!=('cut','config.json') or not same_json(whole[:-1], whole): refuses(bad)
    (tmp_path/'empty').mkdir()
    refuses(tmp_path/'empty', LearnerNotFoundError)
    refuses(tmp_path/'nowhere', LearnerNotFoundError)
    (tmp_path/'nowhere').symlink_to('nowhere else')
    refuses(tmp_path/'nowhere', LearnerNotFoundError)
    refuses(refuses.src)
    refuses(tiny/'model.onnx')
    refuses(tiny/'config.json')

@pytest.mark.parametrize('text', ['', 'null', '[]', '{}', '[1', '\ufeff{}', '{"mednist_fastai": []}', '{"mednist_fastai": {"format": NaN}}', '{"a": '*3000, '['*200_000, '9'*10_000], ids=lambda o: o[:12] or 'nothing')
def test_odd_configurations(refuses, tiny, tmp_path, text):
    bad = shutil.copytree(tiny, tmp_path/'bad')
    (bad/'config.json').write_text(text, encoding='utf-8')
    refuses(bad)

def test_newer_format(refuses, tiny, tmp_path):
    refuses(edited(tiny, tmp_path/'newer', lambda c: c[KEY].update(format=c[KEY]['format']+1)), LearnerFormatError, 'upgrade')
    refuses(edited(tiny, tmp_path/'text', lambda c: c[KEY].update(format='1')))
    refuses(edited(tiny, tmp_path/'none', lambda c: c[KEY].pop('format')))

def test_another_task(refuses, tiny, tmp_path):
    many = make_learner(tmp_path/'many')
    refuses(many, LearnerError, 'no confidence is known', risk=.01)
    for o in 'link','copy': refuses(tiny, SortError, 'per_finding', per_finding=o)
    refuses(many, SortError, 'per_finding', per_finding='symlink')
    refuses(edited(tiny, tmp_path/'task', lambda c: c[KEY].update(task='segmentation')), (LearnerError,SortError))

@pytest.mark.parametrize('change', ['fewer labels','more labels','no labels','twice the same label','another size','colour','no graph inside'])
def test_a_graph_that_does_not_fit(refuses, tiny, tmp_path, change):
    "Digests are right, but graph and configuration are of two learners"
    def edit(c):
        if change=='fewer labels': c.update(label_names=c['label_names'][:-1])
        if change=='more labels': c.update(label_names=c['label_names']+['Foot'])
        if change=='no labels': c.update(label_names=[])
        if change=='twice the same label': c.update(label_names=c['label_names'][:-1]+c['label_names'][:1])
        if change=='another size': c[KEY]['preprocessing'].update(size=32)
        if change=='colour': c[KEY]['preprocessing'].update(mode='RGB')
        if change=='no graph inside': (tmp_path/'odd/model.onnx').write_bytes(b'onnx')
    refuses(edited(tiny, tmp_path/'odd', edit), (LearnerError,SortError))

def test_learner_that_may_not_be_read(refuses, tiny, tmp_path, plain_user):
    bad = shutil.copytree(tiny, tmp_path/'bad')
    for f in share(['config.json','model.onnx'], sorted(os.listdir(tiny))):
        (bad/f).chmod(0)
        p = subprocess.run([SORT, refuses.src, refuses.dst, bad], capture_output=True, text=True, **plain_user)
        (bad/f).chmod(0o644)
        assert p.returncode==1 and len(p.stderr.splitlines())==1 and f in p.stderr and not refuses.dst.exists(), (f, p.stderr)

def test_newer_journal(inbox):
    "A folder that a later version has sorted is left as it is"
    box = inbox(n=20)
    box.sort()
    j = box.dst/sort.STATE/'journal.jsonl'
    head,rest = j.read_text().split('\n', 1)
    j.write_text(json.dumps(json.loads(head)|{'mednist_sort':99})+'\n'+rest)
    before = snapshot(box.dst),snapshot(box.src)
    with pytest.raises(SortError, match='newer version'): box.sort(move=True)
    assert before==(snapshot(box.dst),snapshot(box.src))

# ---- 6. the report

def odd_names(src, files):
    "Pictures under every odd name, a few files that are no pictures, and some that are there twice"
    src.mkdir(parents=True)
    for i,(k,v) in enumerate(o for o in KINDS.items() if o[0].startswith('name_')):
        (src/k).mkdir()
        v.make(src/k)
    for i,f in enumerate(files[::25]):
        for d in ['a','b','c'][:1+i%3]:
            (src/d).mkdir(exist_ok=True)
            shutil.copyfile(f, src/d/f'{i}.png')
    for o in 'a/empty','b/empty','c/text': (src/o).write_bytes(b'text' if o[0]=='c' else b'')
    (src/'link').symlink_to('a')
    return src

def no_constant(o): raise ValueError(f'{o} is no JSON')

@pytest.mark.parametrize('kind', ['csv','jsonl','parquet'])
def test_report_of_every_kind(tmp_path, tiny, phantom_files, kind):
    "The same rows in each, exactly those of the files, with every name as it is"
    src,dst = odd_names(tmp_path/'src', phantom_files),tmp_path/'dst'
    p = subprocess.run([SORT, src, dst, tiny, '--report', kind], capture_output=True, text=True)
    assert p.returncode==0 and f'report.{kind}' in p.stdout, p.stderr
    assert sorted(o.name for o in dst.iterdir() if o.is_file())==[f'report.{kind}']
    df,plain = read_report(dst),classify_folder(src, tmp_path/'dst0', tiny, progress=False, report='csv')
    same_frame(df.assign(destination=df.destination.str.replace('/dst/', '/dst0/')), plain)
    same_frame(read_report(dst/f'report.{kind}'), df)
    found = sorted(map(text, walk(src)))
    assert sorted(df.path)==found and len(df)>60 and df.status.value_counts().to_dict()=={'sorted':len(df)-4, 'unreadable':3, 'skipped':1}
    if kind=='jsonl':
        rows = [json.loads(o, parse_constant=no_constant) for o in (dst/'report.jsonl').read_text(encoding='utf-8').split('\n')[:-1]]
        assert [o['path'] for o in rows]==df.path.tolist() and {tuple(o) for o in rows}=={tuple(df)}
        assert [o['confidence'] for o in rows if o['status']=='sorted']==df.confidence[df.status=='sorted'].tolist() and {o['confidence'] for o in rows if o['status']!='sorted'}=={None}
    if kind=='parquet':
        import pyarrow.parquet as pq
        t = pq.read_table(dst/'report.parquet')
        assert t.column_names==list(df) and t['path'].to_pylist()==df.path.tolist() and t['confidence'].null_count+sum(o!=o for o in t['confidence'].to_pylist())==4
        assert {str(t.schema.field(o).type) for o in ('confidence',f'p_{CLASSES[0]}')}<={'double','float'} and {str(t.schema.field(o).type) for o in ('path','label','error','same_as')}<={'string','large_string'}
    for o in real_paths(dst, df[df.status=='sorted']).items(): assert sha(o[1])==sha(real_paths(src, df, 'path')[o[0]])
    same_frame(classify_folder(src, dst, tiny, progress=False, report=kind), df)

def real_paths(folder, df, column='destination'):
    "The paths behind the texts of a column, by the row's path"
    at = {text(o):o for o in walk(folder, (sort.STATE,))}
    return {k:at[o] for k,o in zip(df.path, df[column]) if o in at}

def test_another_kind_of_report_later(inbox):
    "A destination whose report was of one kind gets one of another kind: the newest is the one that is read, and no stale one stays behind"
    box = inbox(n=30)
    first = box.sort(report='csv')
    for i,kind in enumerate(['parquet','jsonl','csv']):
        box.put(f'new/{i}.png', encode(GREY)+b'%d'%i, i)
        df = box.sort(report=kind)
        assert len(df)==len(first)+1+i
        same_frame(read_report(box.dst), df)
        assert [o.name for o in box.dst.iterdir() if o.name.startswith('report')]==[f'report.{kind}']

def test_wrong_kinds_are_refused(inbox):
    box = inbox(n=6)
    for kw in dict(report='xlsx'),dict(report='CSV '),dict(duplicates='drop'),dict(duplicates='link', move=True):
        with pytest.raises((SortError,ValueError)): box.sort(**kw)
        assert not box.dst.exists() and snapshot(box.src)==box.before
    for args in ['--report','xlsx'],['--duplicates','drop'],['--duplicates','link','--move']:
        p = subprocess.run(box.command(*args), capture_output=True, text=True)
        assert p.returncode in (1,2) and 'Traceback' not in p.stderr and args[0].strip('-') in p.stderr and not box.dst.exists() and snapshot(box.src)==box.before

# ---- the same bytes twice

def doubled(inbox, n=60):
    "An inbox in which a third of the pictures are there twice or three times, under other names and times"
    box = inbox(n=n)
    for i,f in enumerate(sorted(box.src.glob('day*/[0-9]*.png'))[::3]):
        for j,d in enumerate(['again','and-again'][:1+i%2]): box.put(f'{d}/{i}.png', f.read_bytes(), 5000+i+j*1000)
    box.before = snapshot(box.src)
    return box

def firsts(df):
    "What `same_as` must say, computed from the files"
    seen,res = {},[]
    for o in df.itertuples():
        res.append(seen.get(h := sha(o.destination), '') if o.destination else None)
        if o.destination: seen.setdefault(h, o.path)
    return res

@pytest.mark.parametrize('how', ['keep','link','move'])
def test_the_same_bytes_twice(inbox, how):
    "All are placed under names of their own; `same_as` names the first; linked ones share their place on the disk, and sources are never linked to anything"
    box = doubled(inbox)
    kw = dict(move=True) if how=='move' else dict(duplicates=how)
    df = box.sort(**kw)
    want = firsts(df)
    assert [a for a,b in zip(df.same_as, want) if b is not None]==[b for b in want if b is not None] and sum(map(bool, want))>=20
    done = df[df.destination!='']
    assert done.destination.is_unique and Counter(v[0] for v in placed(box.dst).values())==Counter(v[0] for k,v in box.before.items() if str(box.src/k) in set(done.path))
    to = dict(zip(done.path, done.destination))
    for o in done.itertuples(): assert not o.same_as or os.path.samefile(o.destination, to[o.same_as])==(how=='link'), o
    if how!='move': assert snapshot(box.src)==box.before and {os.stat(o).st_nlink for o in walk(box.src)}=={1}
    else: assert sorted(os.path.relpath(o, box.src) for o in walk(box.src))==['day0/notes.txt','day3/empty.png','zz-cut.png']
    if how!='link': assert sorted(placed(box.dst).values())==sorted(v for k,v in box.before.items() if str(box.src/k) in to)
    same_frame(box.sort(**kw), df)
    assert list(read_report(box.dst))[list(df).index('same_as')+1].startswith('p_') # the last column of text

def test_killed_while_linking(inbox, wanted):
    "Links are as complete after a kill as without one"
    def ids(box): return sorted(sorted(os.path.relpath(o, box.dst) for o in walk(box.dst, (sort.STATE,)) if os.stat(o).st_ino==i) for i in {os.stat(o).st_ino for o in walk(box.dst, (sort.STATE,))})
    rng,died,plain = random.Random('link'),0,doubled(inbox, 300)
    plain.sort(duplicates='link')
    for i in range(share(2, 12)):
        box = doubled(inbox, 300)
        died += kill(box, ('placed','journal','end')[i%3], rng, *wanted['copy'][1:], '--duplicates', 'link')
        assert {v[0] for v in placed(box.dst).values()}<={v[0] for v in box.before.values()} and snapshot(box.src)==box.before
        box.sort(duplicates='link')
        assert box.outcome()==plain.outcome() and ids(box)==ids(plain)
    assert died>=share(1, 6)

def test_a_linked_copy_that_was_edited(inbox):
    "A copy that somebody has changed since is not what a later duplicate becomes a link to"
    box = doubled(inbox, 12)
    df = box.sort(duplicates='link')
    box.put('later/x.png', (box.src/'day0/00.png').read_bytes(), 9999)
    at = df.destination[df.path==str(box.src/'day0/00.png')].item()
    with open(at, 'r+b') as f: f.write(b'edited')
    again = box.sort(duplicates='link').set_index('path')
    assert sha(again.destination[str(box.src/'later/x.png')])==sha(box.src/'later/x.png')
    with open(at, 'rb') as f: assert f.read(6)==b'edited'

# ---- a dry run

@pytest.mark.parametrize('how', ['copy','move'])
def test_dry_run(inbox, how):
    "Says what a run would do, and writes nothing: into nothing, into a folder that holds other things, and where half is done already"
    box,move = inbox(n=120),how=='move'
    df = box.sort(move=move, dry_run=True)
    assert not box.dst.exists() and snapshot(box.src)==box.before and len(df)==123
    (box.dst/df.label[0]).mkdir(parents=True)
    (box.dst/df.label[0]/'00.PNG').write_text('mine')
    before = snapshot(box.dst)
    df = box.sort(move=move, dry_run=True)
    assert snapshot(box.dst)==before and snapshot(box.src)==box.before and not (box.dst/sort.STATE).exists()
    kill_before(30, box.command(*['--move'][:move]))
    before = snapshot(box.src),snapshot(box.dst)
    half = box.sort(move=move, dry_run=True)
    assert (snapshot(box.src),snapshot(box.dst))==before
    same_frame(half, df)
    same_frame(box.sort(move=move), df)
    same_frame(box.sort(move=move, dry_run=True), df)
    assert (box.dst/df.label[0]/'00.PNG').read_text()=='mine'

def test_dry_run_of_a_move_after_a_copy(inbox):
    "Everything is in its place already, and only the sources would go: they don't"
    box = inbox(n=40)
    box.sort()
    box.put('day0/new.png', encode(GREY), 7)
    before = snapshot(box.src),snapshot(box.dst)
    df = box.sort(move=True, dry_run=True)
    assert (snapshot(box.src),snapshot(box.dst))==before and len(df)==44
    same_frame(box.sort(move=True), df)

def test_dry_run_of_the_command(inbox, wanted):
    "Prints the table, exits as the run would, on a disk that may not be written too"
    box = inbox()
    for args,code in [([],0),(['--strict'],3),(['--move','--strict'],3)]:
        p = subprocess.run([SORT, box.src, box.dst, box.learner, '--dry-run', *args], capture_output=True, text=True)
        assert p.returncode==code and 'unreadable' in p.stdout and 'Traceback' not in p.stderr, p.stderr
        assert not box.dst.exists() and snapshot(box.src)==box.before
    box.sort(duplicates='keep')
    assert box.outcome()==wanted['copy'][0]
