"Indexes: exactness, changes that are whole or not at all, other learners, damage, and the approximate search"
import json, multiprocessing, os, random, shutil, signal, subprocess, sys, tempfile, threading, time
from contextlib import contextmanager
from pathlib import Path
import numpy as np, pytest
from PIL import Image
pytest.importorskip('faiss')
from corpus import GREY, dicom
from mednist_fastai import search as module
from mednist_fastai.images import load_image
from mednist_fastai.infer import predict_files
from mednist_fastai.learner import open_learner
from mednist_fastai.search import _CONFIG as CONFIG, IndexBusyError, IndexDamagedError, IndexExistsError, IndexFormatError, IndexNotFoundError, IndexWriteError, OtherLearnerError, SearchError, SearchIndex, nearest, unit_vectors

D = 96 # of the learner in the package

@pytest.fixture
def ix(tmp_path): return SearchIndex.create(tmp_path/'index')

def some(n, seed=0, d=D): return np.random.default_rng(seed).normal(size=(n,d)).astype(np.float32)
def names(n, first=0): return [f'{first+i}.png' for i in range(n)]
def shas(n, first=0): return [f'{first+i:064x}' for i in range(n)]
def state(ix): return sorted(zip(ix.rows(range(len(ix))).path, np.round(np.asarray(ix.vectors), 5).tolist()))

def test_a_folder(ix, phantom_files):
    "The same vectors as `predict_files`, and its neighbours by plain NumPy"
    folder = Path(phantom_files[0]).parents[1]
    res = ix.index(folder)
    assert res[:4]==(len(phantom_files),0,0,0) and not any(p.endswith('.png') for p,_ in res.left) # what `make_phantoms` writes beside the pictures
    files = ix.rows(range(len(ix)))
    assert sorted(files.path)==phantom_files and (files.label==[Path(p).parent.name for p in files.path]).all()
    v = unit_vectors(predict_files(files.path, precision='float32')[1])
    assert np.allclose(v, ix.vectors, atol=1e-6)
    q = files.path[7]
    want = [files.path[i] for i in np.argsort(-(v@v[7]), kind='stable') if files.digest[i]!=files.digest[7]][:9]
    got = ix.similar(q, 9)
    assert got.path.tolist()==want and got.similarity.is_monotonic_decreasing and q not in set(got.path)
    assert ix.similar(q, 1, itself=True).path[0]==q
    assert len(ix.similar(q, 10_000))==len(ix)-1

def test_only_what_is_new_is_embedded(ix, phantom_files, tmp_path, monkeypatch):
    for i,f in enumerate(phantom_files[:6]): (tmp_path/'in'/'x').mkdir(parents=True, exist_ok=True); shutil.copy(f, tmp_path/'in'/'x'/f'{i}.png')
    seen,embed = [],SearchIndex._embed
    monkeypatch.setattr(SearchIndex, '_embed', lambda self, rows, left: seen.append(len(rows)) or embed(self, rows, left))
    assert ix.index(tmp_path/'in')[:4]==(6,0,0,0)
    assert ix.index(tmp_path/'in')[:4]==(0,0,6,0)
    (tmp_path/'in'/'x'/'0.png').unlink()
    shutil.copy(phantom_files[9], tmp_path/'in'/'x'/'1.png')
    (tmp_path/'in'/'x'/'bad.png').write_bytes(b'no picture')
    res = ix.index(tmp_path/'in')
    assert res[:4]==(0,1,4,0) and [Path(p).name for p,_ in res.left]==['bad.png'] and len(ix)==6
    assert ix.index(tmp_path/'in', prune=True).removed==1 and len(ix)==5
    assert seen==[6,2,1] # the broken one is tried again, nothing else

def test_add_remove_and_open_again(ix):
    ix.add_vectors(names(50), some(50), shas(50), ['a']*50)
    ix.add_vectors(['7.png','new.png'], some(2, 1), shas(2, 100)) # one in the place of another
    assert len(ix)==51 and ix.remove(paths=['0.png','absent.png'], digests=shas(2, 10))==3
    again = SearchIndex(ix.path)
    assert state(again)==state(ix) and len(again)==48
    rows = again.rows(range(48))
    assert rows.digest[rows.path=='7.png'].item()==shas(1, 100)[0] and not set(rows.path)&{'0.png','10.png','11.png'}
    sims,at = again.search(some(2, 1), 3)
    assert again.rows(at[:,0]).path.tolist()==['7.png','new.png'] and np.allclose(sims[:,0], 1, atol=1e-5)
    assert sorted(p.name for p in ix.path.iterdir() if p.suffix in ('.npy','.sqlite'))==sorted(again.config['files']) # earlier generations are gone

def test_who_has_it_open_reads_on(ix):
    ix.add_vectors(names(20), some(20), shas(20))
    reader = SearchIndex(ix.path)
    before = state(reader)
    ix.remove(paths=names(10))
    assert state(reader)==before and len(SearchIndex(ix.path))==10
    reader.add_vectors(['more.png'], some(1, 5), shas(1, 50)) # a change begins from what is on the disk
    assert len(reader)==11

def hold(path, ready, go):
    with module._changing(SearchIndex(path)): ready.set(); go.wait(60)

def test_two_changes_at_once(ix):
    ctx = multiprocessing.get_context('forkserver')
    ready,go = ctx.Event(),ctx.Event()
    p = ctx.Process(target=hold, args=(ix.path, ready, go)); p.start()
    try:
        assert ready.wait(60)
        with pytest.raises(IndexBusyError): ix.add_vectors(names(1), some(1), shas(1))
        with pytest.raises(IndexBusyError): ix.remove(paths=['x'])
    finally: go.set(); p.join()
    assert ix.add_vectors(names(1), some(1), shas(1))==1

def churn(path):
    ix = SearchIndex(path)
    while True:
        ix.add_vectors(names(300), some(300), shas(300))
        ix.remove(paths=names(300))

def test_killed_while_it_changes(ix, tmp_path):
    "SIGKILL at random moments: the index opens, and is whole: all 300 or none"
    rng,ctx = random.Random(0),multiprocessing.get_context('forkserver')
    seen = set()
    for i in range(100):
        p = ctx.Process(target=churn, args=(ix.path,)); p.start()
        first,end = json.loads((ix.path/CONFIG).read_text())['generation'],time.time()+60
        while json.loads((ix.path/CONFIG).read_text())['generation']<first+2 and time.time()<end: time.sleep(.005)
        time.sleep(rng.random()*.05)
        os.kill(p.pid, signal.SIGKILL); p.join()
        now = SearchIndex(ix.path) # verifies every digest
        assert len(now) in (0,300)
        if len(now): assert np.allclose(now.vectors, unit_vectors(some(300))); seen.add(300)
        else: seen.add(0)
        if len(seen)==2 and i>=24: break
    assert seen=={0,300} # both sides of a change were met
    SearchIndex(ix.path).add_vectors(['x'], some(1), shas(1))
    assert {p.suffix for p in ix.path.iterdir()}<={'.npy','.sqlite','.json','.new','','.lock'} and len(list(ix.path.glob('*.npy')))==1

@pytest.mark.parametrize('which', ['vectors','table'])
def test_damage_is_refused(ix, which, tmp_path):
    ix.add_vectors(names(5), some(5), shas(5))
    file = ix.path/ix.config['names'][which]
    data = bytearray(file.read_bytes())
    for at in random.Random(0).sample(range(len(data)), 8):
        bad = bytearray(data); bad[at] ^= 1; file.write_bytes(bad)
        with pytest.raises(IndexDamagedError): SearchIndex(ix.path)
    file.unlink()
    with pytest.raises(IndexDamagedError, match='missing'): SearchIndex(ix.path)

def test_others_are_refused(ix, tiny, tmp_path):
    with pytest.raises(OtherLearnerError, match='was made by'): SearchIndex(ix.path, tiny)
    good = json.loads((ix.path/CONFIG).read_text())
    odd = [good|{k:v} for k,v in dict(n=3, dim=5, learner=3, names={}, files={}, format=True).items()] + [{k:v for k,v in good.items() if k!=o} for o in good if o!='near']
    outside = good|dict(names=good['names']|dict(vectors='../v.npy'), files={'../v.npy':'0'*64, good['names']['table']:good['files'][good['names']['table']]})
    for text,error in (('{', IndexDamagedError), ('[]', IndexDamagedError), ('{"format": 2}', IndexFormatError), *((json.dumps(o), IndexDamagedError) for o in (*odd, outside))):
        (ix.path/CONFIG).write_text(text)
        for verify in (True,False):
            with pytest.raises(error): SearchIndex(ix.path, verify=verify)
    with pytest.raises(IndexNotFoundError): SearchIndex(tmp_path/'absent')
    with pytest.raises(SearchError, match='no folder'): SearchIndex.create(tmp_path/'new').index(tmp_path/'absent')

@pytest.mark.parametrize('bad', [np.zeros((1,D)), np.full((1,D), np.nan), np.full((1,D), np.inf), np.ones((1,D+1)), np.ones(D)])
def test_vectors_without_a_direction(ix, bad):
    with pytest.raises(SearchError): ix.add_vectors(names(1), bad, shas(1))
    ix.add_vectors(names(2), some(2), shas(2))
    with pytest.raises(SearchError if bad.shape!=(1,D+1) else Exception): ix.search(bad)
    assert len(ix)==2

def test_what_is_given_is_looked_at_first(ix, tmp_path):
    for digests,labels in ((['x'], None), ([7], None), (shas(1), [None]), (shas(1), [float('nan')]), (shas(1), ['a','b'])):
        with pytest.raises(SearchError): ix.add_vectors(names(1), some(1), digests, labels)
    with pytest.raises(SearchError, match='twice'): ix.add_vectors(['a','a'], some(2), shas(2))
    assert ix.add_vectors([], np.empty((0,D)), [])==0 and ix.config['generation']==0
    ix.add_vectors([*names(3), tmp_path/'here.png'], some(4), shas(4))
    assert (ix.remove('0.png'), ix.remove(digests=shas(1, 1)[0]), ix.remove('nothing'))==(1,1,0)
    assert ix.remove(os.path.relpath(tmp_path/'here.png'))==1 and ix.rows(range(len(ix))).path.tolist()==['2.png']

def test_files_of_others_stay(ix, tmp_path):
    for o in 'mine.npy','table.sqlite','near-x.faiss': (ix.path/o).write_text('mine')
    ix.add_vectors(names(2), some(2), shas(2))
    assert all((ix.path/o).read_text()=='mine' for o in ('mine.npy','table.sqlite','near-x.faiss'))
    with pytest.raises(IndexExistsError): SearchIndex.create(ix.path)
    (tmp_path/'file').write_text(''); (tmp_path/'empty').mkdir()
    with pytest.raises(IndexExistsError): SearchIndex.create(tmp_path/'file')
    assert len(SearchIndex.create(tmp_path/'empty'))==0
    assert sorted(o.name for o in tmp_path.iterdir())==['empty','file','index'] # nothing of the making is left

def test_opened_while_another_process_changes_it(ix):
    "Whoever opens it finds one whole state, and never a missing file"
    ctx = multiprocessing.get_context('forkserver')
    p = ctx.Process(target=churn, args=(ix.path,)); p.start()
    try:
        end,sizes,lf = time.time()+60,[],ix.learner
        while len(sizes)<300 or (len(set(sizes))<2 and time.time()<end):
            now = SearchIndex(ix.path, lf)
            assert len(now.vectors)==len(now.ids)==len(now) in (0,300)
            sizes.append(len(now))
    finally: p.kill(); p.join()
    assert set(sizes)=={0,300}

def test_searched_while_another_thread_changes_it(ix, phantom_files):
    "The positions of a search and the rows that they name are of one state"
    paths,digests = phantom_files[:40],[module.file_digest(o) for o in phantom_files[:40]]
    e = predict_files(paths, precision='float32')[1]
    ix.add_vectors(names(500), some(500), shas(500)); ix.add_vectors(paths, e, digests)
    stop,wrong,seen = threading.Event(),[],[]
    def look():
        while not stop.is_set():
            i = random.randrange(40)
            seen.append(i)
            if digests[i] not in set(ix.similar(paths[i], 1, itself=True).digest): wrong.append(i) # a copy of it would do as well
    threads = [threading.Thread(target=look) for _ in range(2)]
    for t in threads: t.start()
    for _ in range(15): ix.remove(names(500)); ix.add_vectors(names(500), some(500), shas(500))
    stop.set()
    for t in threads: t.join()
    assert len(seen)>20 and not wrong

def test_changed_in_the_middle_of_a_search(ix, phantom_files, monkeypatch):
    "Between finding positions and reading what they name, another thread takes away what stood before them"
    ix.add_vectors(names(500), some(500), shas(500)); ix.add_vectors(phantom_files[:20], predict_files(phantom_files[:20], precision='float32')[1], [module.file_digest(o) for o in phantom_files[:20]])
    want,rows = ix.similar(phantom_files[3], 5),module._Generation.rows
    monkeypatch.setattr(module._Generation, 'rows', lambda self, at: ix.remove(names(500)) and rows(self, at) if len(ix)==520 else rows(self, at))
    assert ix.similar(phantom_files[3], 5).equals(want) and len(ix)==20

def small_disk(path, size):
    path.mkdir()
    if not shutil.which('mount') or subprocess.run(['mount','-t','tmpfs','-o',f'size={size}','tmpfs',path], capture_output=True).returncode: pytest.skip('no disk may be mounted here')

def test_full_disk(tmp_path):
    "An error and the index as it was, also where the inverted file is what doesn't fit"
    small_disk(tmp_path/'disk', '4m')
    try:
        ix = SearchIndex.create(tmp_path/'disk'/'index')
        ix.add_vectors(names(200), some(200), shas(200))
        with pytest.raises(IndexWriteError, match='make room'): ix.add_vectors(names(15_000), some(15_000), shas(15_000))
        assert len(ix)==len(SearchIndex(ix.path))==200 and len(list(ix.path.iterdir()))==4 # with the lock
        ix.remove(names(100))
        assert len(SearchIndex(ix.path))==100
        del ix
    finally: subprocess.run(['umount','-l',tmp_path/'disk'], check=True)

@contextmanager
def not_root():
    "Root reads every folder, so somebody else does this"
    if os.geteuid(): yield; return
    os.seteuid(65534)
    try: yield
    finally: os.seteuid(0)

@pytest.mark.skipif(os.name=='nt', reason='permissions of POSIX systems')
def test_prune_keeps_what_can_not_be_looked_at(phantom_files):
    "A folder that can't be read says nothing about what is in it"
    with tempfile.TemporaryDirectory() as d: # pytest's own is for root alone
        box = Path(d)
        for i,f in enumerate(phantom_files[:6]): (box/'in'/'ab'[i%2]).mkdir(parents=True, exist_ok=True); shutil.copy(f, box/'in'/'ab'[i%2]/f'{i}.png')
        ix = SearchIndex.create(box/'index')
        ix.index(box/'in')
        for o in (box/'in'/'a'/'0.png', box/'in'/'b'/'1.png'): o.unlink()
        for o in (box, ix.path, ix.path/'.lock'): o.chmod(0o777)
        (box/'in'/'b').chmod(0)
        with not_root(): res = ix.index(box/'in', prune=True)
        assert res.removed==1 and [Path(p).name for p,why in res.left if 'cannot be read' in why]==['b'] and len(ix)==5
        (box/'in'/'b').chmod(0o755)
        assert ix.index(box/'in', prune=True).removed==1 and len(ix)==4

def test_changed_and_broken(ix, tmp_path, phantom_files):
    "A picture that can't be read any more leaves the index: its vector is of other bytes"
    (tmp_path/'in').mkdir()
    for i in range(4): shutil.copy(phantom_files[i], tmp_path/'in'/f'{i}.png')
    ix.index(tmp_path/'in')
    (tmp_path/'in'/'2.png').write_bytes(b'cut off')
    res = ix.index(tmp_path/'in')
    assert res[:4]==(0,0,3,1) and [Path(p).name for p,_ in res.left]==['2.png'] and len(ix)==3
    shutil.copy(phantom_files[2], tmp_path/'in'/'2.png')
    assert ix.index(tmp_path/'in')[:4]==(1,0,3,0)

def test_index_inside_the_folder(tmp_path, phantom_files):
    for i in range(3): shutil.copy(phantom_files[i], tmp_path/f'{i}.png')
    ix = SearchIndex.create(tmp_path/'index')
    assert ix.index(tmp_path)==(3,0,0,0,[]) and ix.index(tmp_path, prune=True)==(0,0,3,0,[])

def test_near_twins_are_left_out(ix, tmp_path, phantom_files):
    "A brighter copy is a twin, the other phantoms are none; one whose file is gone can't be judged and stays"
    (tmp_path/'in').mkdir()
    x = np.asarray(Image.open(phantom_files[0]).convert('L'))
    Image.fromarray(x).save(tmp_path/'in'/'query.png')
    for i in range(30): Image.fromarray(np.clip(x.astype(int)+i//3+1, 0, 255).astype(np.uint8)).save(tmp_path/'in'/f'twin{i:02}.png')
    for i in range(1, 6): shutil.copy(phantom_files[i*50], tmp_path/'in'/f'other{i}.png')
    ix.index(tmp_path/'in')
    query = tmp_path/'in'/'query.png'
    assert all('twin' in o for o in ix.similar(query, 5).path)
    found = ix.similar(query, 3, twins=False)
    assert len(found)==3 and all('other' in o for o in found.path) and found.similarity.is_monotonic_decreasing
    assert len(ix.similar(query, 100, twins=False))==5
    (tmp_path/'in'/'twin00.png').unlink()
    assert 'twin00.png' in {Path(o).name for o in ix.similar(query, 100, twins=False).path}
    assert len(ix.figure(query, 6).axes)==7 # with a place for the file that is gone

def test_a_dicom_file(ix, tmp_path):
    "Indexed and searched as any other picture"
    (tmp_path/'in').mkdir()
    (tmp_path/'in'/'a.dcm').write_bytes(dicom())
    Image.fromarray(GREY).save(tmp_path/'in'/'b.png')
    assert ix.index(tmp_path/'in').added==2
    found = ix.similar(tmp_path/'in'/'a.dcm', 2)
    assert [Path(o).name for o in found.path]==['b.png'] and ix.similar(tmp_path/'in'/'a.dcm', 1, itself=True).similarity[0]>.9999

def test_names_that_are_no_text(ix, tmp_path, phantom_files):
    (tmp_path/'in'/os.fsdecode(b'cl\xe9')).mkdir(parents=True)
    names = [b'\xff\xfe.png', 'Größe\N{THINKING FACE}.png'.encode(), b"a'b\n.png"]
    for i,n in enumerate(names): shutil.copy(phantom_files[i], os.path.join(os.fsencode(tmp_path/'in'), n))
    shutil.copy(phantom_files[9], os.path.join(os.fsencode(tmp_path/'in'), b'cl\xe9', b'4.png'))
    names.append(b'4.png')
    assert ix.index(tmp_path/'in').added==4 and ix.index(tmp_path/'in').kept==4
    assert sorted(os.path.basename(os.fsencode(p)) for p in ix.rows(range(4)).path)==sorted(names)

def test_approximate_search(ix, monkeypatch):
    "Beyond the limit: neighbours that are found have their exact similarity, nearly all are found, changes and the way back under the limit"
    monkeypatch.setattr(module, 'EXACT', 3000)
    centres = some(40, 3)
    def draw(n, seed): r = np.random.default_rng(seed); return centres[r.integers(40, size=n)]+1.5*r.normal(size=(n,D)).astype(np.float32)
    v = draw(6000, 4)
    ix.add_vectors(names(6000), v, shas(6000))
    assert ix.ivf is not None and ix.config['near']['recall']>=.995
    q = unit_vectors(draw(200, 5))
    true_s,true_r = nearest(np.asarray(ix.vectors), q, 10)
    sims,rows = ix.search(q, 10)
    hit = np.mean([len(set(a)&set(b))/10 for a,b in zip(rows.tolist(), true_r.tolist())])
    assert hit>=.98 and np.allclose(sims, np.einsum('nd,nkd->nk', q, ix.vectors[rows]), atol=1e-5)
    ix.remove(paths=names(100)); ix.add_vectors(names(50, 9000), some(50, 6), shas(50, 9000))
    again = SearchIndex(ix.path)
    assert len(again)==5950 and again.ivf is not None
    sims,rows = again.search(some(50, 6), 1)
    assert again.rows(rows[:,0]).path.tolist()==names(50, 9000) and np.allclose(sims, 1, atol=1e-5)
    assert not set(again.rows(again.search(v[:100], 3)[1].ravel()).path)&set(names(100))
    ix.remove(paths=names(6000))
    assert len(SearchIndex(ix.path))==50 and SearchIndex(ix.path).ivf is None

def test_the_command(tmp_path, phantom_files):
    folder = Path(phantom_files[0]).parents[1]
    def run(*args): return subprocess.run([str(Path(sys.executable).with_name('mednist-search')), *map(str, args)], capture_output=True, text=True)
    res = run(tmp_path/'ix', '--add', folder)
    assert res.returncode==0 and f'{len(phantom_files):,} added' in res.stdout, res.stderr
    res = run(tmp_path/'ix', phantom_files[3], '--k', '4', '--no-twins', '--figure', tmp_path/'f.png')
    assert res.returncode==0 and len(res.stdout.splitlines())==5 and (tmp_path/'f.png').exists()
    res = run(tmp_path/'ix', '--remove', phantom_files[3])
    assert res.returncode==0 and '1 removed' in res.stdout
    (tmp_path/'empty').mkdir()
    res = run(tmp_path/'empty', '--add', Path(phantom_files[0]).parent)
    assert res.returncode==0 and '50 images' in res.stdout
    res = run(Path(phantom_files[0]).parent, '--add', Path(phantom_files[0]).parent)
    assert res.returncode==1 and 'not empty' in res.stderr and len(res.stderr.splitlines())==1
    res = run(tmp_path/'absent', phantom_files[3])
    assert res.returncode==1 and 'holds no index' in res.stderr and len(res.stderr.splitlines())==1

def test_neither_torch_nor_fastai(tmp_path):
    code = f'import sys; from mednist_fastai.search import SearchIndex; SearchIndex.create({str(tmp_path/"i")!r}); print([m for m in ("torch","fastai","timm","pandas","matplotlib") if m in sys.modules])'
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True).stdout=='[]\n'
