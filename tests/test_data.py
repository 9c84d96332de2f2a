"Mechanism of `mednist_fastai.data`: downloads that fail, hostile archives, processes at once, digests, splits; real MedNIST if at hand"
import hashlib, http.server, io, multiprocessing, os, re, shutil, stat, tarfile, threading, zipfile
from collections import Counter
from dataclasses import replace
from pathlib import Path
import numpy as np, pandas as pd, pytest
from PIL import Image
from conftest import put
from mednist_fastai import data
from mednist_fastai.data import *

def tree(root, counts, seed=0, size=16):
    "A folder of class folders with `counts[label]` small random PNG files each"
    rng = np.random.default_rng(seed)
    for label,n in counts.items():
        (root/label).mkdir(parents=True, exist_ok=True)
        for i in range(n): Image.fromarray(rng.integers(0, 256, (size,size), dtype=np.uint8)).save(root/label/f'{i:04}.png')
    return root

def frame(counts, groups=None, root='/nowhere'):
    "An index whose files need not exist"
    rows = [(f'{root}/{l}/{i:06}.png', l, '', groups(l, i) if groups else '', 'made') for l,n in sorted(counts.items()) for i in range(n)]
    df = pd.DataFrame(rows, columns=['path','label','split','group','source'])
    df.attrs['root'] = root
    return df

@pytest.fixture
def home(tmp_path, monkeypatch):
    "A fastai home of the test's own and no environment variable"
    monkeypatch.setenv('FASTAI_HOME', str(tmp_path/'home'))
    monkeypatch.delenv(DATA_ENV, raising=False)
    return tmp_path/'home'

@pytest.fixture
def toy(tmp_path, home, monkeypatch):
    "A registered source `toy`, with its folder in `tree/Toy` and its archive `Toy.tar.gz` on `shelf`"
    root = tree(tmp_path/'tree'/'Toy', dict(a=12, b=8))
    shelf = tmp_path/'shelf'
    shelf.mkdir()
    with tarfile.open(shelf/'Toy.tar.gz', 'w:gz') as t: t.add(root, 'Toy')
    md5 = hashlib.md5((shelf/'Toy.tar.gz').read_bytes()).hexdigest()
    digest = content_digest(folder_index(root))
    url = 'http://127.0.0.1:9/Toy.tar.gz' # nobody answers there
    src = Source('toy', 'Toy', 'Toy', 'Toy.tar.gz', url, 5000, md5, digest, dict(a=12, b=8), 'none', 'nobody', 'none')
    monkeypatch.setitem(SOURCES, 'toy', src)
    return src

class Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *args): pass
    def do_GET(self):
        s = self.server
        s.asked.append(self.headers.get('Range'))
        fault = s.faults.pop(0) if s.faults else ''
        if fault in ('404', '503'): return self.send_error(int(fault))
        body,start = s.body,0
        if (r := self.headers.get('Range')) and fault!='norange':
            start = int(re.match(r'bytes=(\d+)-', r)[1])
            if start>=len(body): return self.send_error(416)
            self.send_response(206)
            self.send_header('Content-Range', f'bytes {start}-{len(body)-1}/{len(body)}')
        else: self.send_response(200)
        body = body[start:]
        self.send_header('Content-Length', str(len(body)))
        self.end_headers()
        if fault=='break': body = body[:len(body)//2]
        if fault=='corrupt': body = bytes(len(body))
        self.wfile.write(body)

@pytest.fixture
def server():
    "A server on 127.0.0.1 with Range; `faults` says what goes wrong in each answer, `asked` collects the ranges asked for"
    s = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler)
    s.body,s.faults,s.asked = np.random.default_rng(0).bytes(300_000),[],[]
    s.md5,s.url = hashlib.md5(s.body).hexdigest(),f'http://127.0.0.1:{s.server_port}/Toy.tar.gz'
    threading.Thread(target=s.serve_forever, daemon=True).start()
    yield s
    s.shutdown()
    s.server_close()

# --- download

def fetch(s, dst, **kw): return download(s.url, dst, s.md5, progress=False, **kw)

def test_download_says_what_it_does(server, tmp_path, capsys):
    p = fetch(server, tmp_path/'deep'/'x.tar.gz')
    assert p.read_bytes()==server.body and not Path(f'{p}.part').exists()
    out = capsys.readouterr().out
    assert server.url in out and '0.3 MB' in out and len(out.splitlines())==1

def test_download_bar(server, tmp_path, capsys):
    download(server.url, tmp_path/'x', server.md5, progress=True)
    assert '100' in capsys.readouterr().out

def test_download_goes_on_after_a_break(server, tmp_path):
    server.faults = ['break']
    assert fetch(server, tmp_path/'x').read_bytes()==server.body
    assert server.asked==[None, 'bytes=150000-']

def test_download_goes_on_in_a_later_run(server, tmp_path):
    server.faults = ['break']
    with pytest.raises(DataNotFoundError, match='150,000 of 300,000 bytes'): fetch(server, tmp_path/'x', tries=1)
    assert not (tmp_path/'x').exists() and (tmp_path/'x.part').stat().st_size==150_000
    assert fetch(server, tmp_path/'x').read_bytes()==server.body
    assert server.asked[-1]=='bytes=150000-'

def test_download_from_a_server_without_range(server, tmp_path):
    server.faults = ['break', 'norange']
    assert fetch(server, tmp_path/'x').read_bytes()==server.body

def test_download_drops_a_part_of_something_else(server, tmp_path):
    (tmp_path/'x.part').write_bytes(b'no part of it'*100)
    assert fetch(server, tmp_path/'x').read_bytes()==server.body
    assert server.asked==['bytes=1300-', None]

@pytest.mark.parametrize('whole', [True, False])
def test_download_with_a_part_that_is_long_enough(server, tmp_path, whole):
    (tmp_path/'x.part').write_bytes(server.body if whole else bytes(400_000))
    assert fetch(server, tmp_path/'x').read_bytes()==server.body

def test_download_corrupt(server, tmp_path):
    server.faults = ['corrupt']
    with pytest.raises(DataCorruptError, match='md5'): fetch(server, tmp_path/'x')
    assert not list(tmp_path.iterdir())

def test_download_404_is_final_503_is_not(server, tmp_path):
    server.faults = ['404']
    with pytest.raises(DataNotFoundError, match='404'): fetch(server, tmp_path/'x')
    assert len(server.asked)==1
    server.faults = ['503', 'break']
    assert fetch(server, tmp_path/'x').read_bytes()==server.body

def test_source_is_downloaded_verified_and_unpacked(server, toy, home, tmp_path, monkeypatch):
    server.body = (tmp_path/'shelf'/'Toy.tar.gz').read_bytes()
    monkeypatch.setitem(SOURCES, 'toy', replace(toy, url=server.url))
    df = get_index('toy', progress=False)
    assert len(df)==20 and Path(df.attrs['root'])==home/'data'/'Toy'
    get_index('toy', progress=False)
    assert len(server.asked)==1

def test_no_network_says_what_to_do(toy, home):
    with pytest.raises(DataNotFoundError) as e: get_index('toy', progress=False)
    for o in (toy.url, toy.archive, str(home/'archive'), DATA_ENV): assert o in str(e.value)

# --- finding

def test_places(toy, home, tmp_path, monkeypatch):
    root = tmp_path/'tree'
    for place in (root, root/'Toy'): assert find_source('toy', place)==root/'Toy'
    monkeypatch.setenv(DATA_ENV, str(root))
    assert find_source('toy')==root/'Toy'
    monkeypatch.setenv(DATA_ENV, str(tmp_path/'shelf'))
    assert find_source('toy')==home/'data'/'Toy'
    assert find_source('toy', tmp_path/'shelf'/'Toy.tar.gz')==home/'data'/'Toy'
    monkeypatch.setenv(DATA_ENV, str(tmp_path/'gone'))
    with pytest.raises(DataNotFoundError, match='gone does not exist'): find_source('toy')

def test_archive_in_fastai_folders(toy, home, tmp_path):
    (home/'archive').mkdir(parents=True)
    shutil.copy(tmp_path/'shelf'/'Toy.tar.gz', home/'archive')
    assert len(get_index('toy'))==20

def test_fastai_config_is_honoured(home, tmp_path):
    assert fastai_folder()==home/'data' and not home.exists()
    home.mkdir()
    (home/'config.ini').write_text(f'[DEFAULT]\ndata = {tmp_path}/far\narchive = near\n')
    assert fastai_folder()==tmp_path/'far' and fastai_folder('archive')==home/'near'

def test_read_only_shelf(toy, home, tmp_path):
    shelf = tmp_path/'shelf'
    shelf.chmod(stat.S_IRUSR|stat.S_IXUSR)
    try: assert len(get_index('toy', shelf))==20
    finally: shelf.chmod(stat.S_IRWXU)
    assert [o.name for o in shelf.iterdir()]==['Toy.tar.gz']

def test_wrong_content(toy, tmp_path):
    root = tmp_path/'tree'/'Toy'
    (root/'a'/'0000.png').unlink()
    with pytest.raises(DataCorruptError, match='a: 11 files, expected 12'): get_index('toy', root)
    assert len(get_index('toy', root, verify=False))==19
    shutil.copy(root/'a'/'0001.png', root/'a'/'0000.png')
    with pytest.raises(DataCorruptError, match='names or bytes differ'): get_index('toy', root)
    shutil.rmtree(root/'b')
    with pytest.raises(DataCorruptError, match='b: 0 files, expected 8'): get_index('toy', root)

# --- unpacking

def tar_of(path, *members):
    "A tar.gz of (name, type, link) members, each file with a little text in it"
    with tarfile.open(path, 'w:gz') as t:
        for name,typ,link in members:
            o = tarfile.TarInfo(name)
            o.type,o.linkname,o.size = typ,link,4 if typ==tarfile.REGTYPE else 0
            t.addfile(o, io.BytesIO(b'evil') if o.size else None)
    return path

FILE = tarfile.REGTYPE

@pytest.mark.parametrize('member', [('/tmp/mednist_evil', FILE, ''), ('../evil', FILE, ''), ('Toy/a/../../../evil', FILE, ''),
    ('C:/evil', FILE, ''), ('..\\evil', FILE, ''), ('Toy/a/link', tarfile.SYMTYPE, '/etc/passwd'),
    ('Toy/a/hard', tarfile.LNKTYPE, '../../evil'),
    ('Toy/a/fifo', tarfile.FIFOTYPE, ''), ('Toy/a/dev', tarfile.CHRTYPE, '')], ids=lambda o: o[0])
def test_hostile_tar(toy, home, tmp_path, member):
    bad = tar_of(tmp_path/'bad.tar.gz', ('Toy/a/0.png', tarfile.REGTYPE, ''), member)
    with pytest.raises(DataCorruptError, match='is refused'): unpack(bad, home/'data'/'Toy', toy, verify=False)
    assert [o.name for o in (home/'data').iterdir()] in ([], ['.Toy.lock'])
    assert not list(tmp_path.rglob('*evil*')) and not Path('/tmp/mednist_evil').exists()

def test_hostile_zip(toy, home, tmp_path):
    for name,mode in (('../evil', 0), ('Toy/a/link', stat.S_IFLNK|0o777)):
        with zipfile.ZipFile(tmp_path/'bad.zip', 'w') as z:
            o = zipfile.ZipInfo(name)
            o.external_attr = mode<<16
            z.writestr(o, '/etc/passwd')
        with pytest.raises(DataCorruptError, match='is refused'): unpack(tmp_path/'bad.zip', home/'data'/'Toy', toy, verify=False)
    assert not list(tmp_path.rglob('*evil'))

@pytest.mark.parametrize('kind', ['zip', 'xztar', 'bztar', 'tar'])
def test_other_packings(toy, home, tmp_path, kind):
    os.remove(tmp_path/'shelf'/'Toy.tar.gz')
    shutil.make_archive(str(tmp_path/'shelf'/'Toy'), kind, tmp_path/'tree', 'Toy')
    assert len(get_index('toy', tmp_path/'shelf'))==20

def test_archive_without_the_folder_around(toy, home, tmp_path):
    shutil.make_archive(str(tmp_path/'flat'), 'gztar', tmp_path/'tree'/'Toy')
    assert len(folder_index(unpack(tmp_path/'flat.tar.gz', home/'data'/'Toy', toy)))==20

@pytest.mark.parametrize('spoil', ['truncated', 'empty', 'text', 'other folder', 'other bytes'])
def test_bad_archive_leaves_nothing(toy, home, tmp_path, spoil):
    p = tmp_path/'shelf'/'Toy.tar.gz'
    if spoil=='truncated': p.write_bytes(p.read_bytes()[:-200])
    if spoil=='empty': p.write_bytes(b'')
    if spoil=='text': p.write_text('<html>not found</html>')
    if spoil in ('other folder', 'other bytes'):
        tree(tmp_path/'other'/'Toy', dict(a=12, b=8), seed=1)
        with tarfile.open(p, 'w:gz') as t: t.add(tmp_path/'other'/'Toy', 'Toy' if spoil=='other bytes' else 'Zoo')
        if spoil=='other folder':
            with tarfile.open(p, 'w:gz') as t: t.add(tmp_path/'other'/'Toy'/'a', 'Zoo/x')
    with pytest.raises(DataCorruptError): get_index('toy', p)
    assert not (home/'data'/'Toy').exists() and not list((home/'data').glob('*tmp*'))

def _unpack_in_process(archive, dst, src, start):
    start.wait()
    unpack(archive, dst, src)

def test_unpack_by_four_processes_at_once(toy, home, tmp_path):
    (home/'data'/'.Toy.tmp-left').mkdir(parents=True) # as a killed run leaves it
    ctx = multiprocessing.get_context('spawn')
    start = ctx.Event()
    ps = [ctx.Process(target=_unpack_in_process, args=(tmp_path/'shelf'/'Toy.tar.gz', home/'data'/'Toy', toy, start)) for _ in range(4)]
    for p in ps: p.start()
    start.set()
    for p in ps: p.join(120)
    assert [p.exitcode for p in ps]==[0]*4
    check_content(folder_index(home/'data'/'Toy'), toy)
    assert not list((home/'data').glob('*tmp*'))

# --- the index

def test_index_of_class_folders(tmp_path):
    root = tree(tmp_path/'x', dict(b=2, a=11))
    for name in ('a/.hidden.png', 'a/Thumbs.db', 'a/notes.txt', 'top.png', 'labels.csv'): (root/name).write_text('x')
    for name in ('a/IM_0001', 'b/1.2.840.113619', 'b/X.DCM', 'b/UP.JPEG', 'b/sub/deep.png'):
        (root/name).parent.mkdir(exist_ok=True)
        (root/name).write_text('x')
    df = get_index(root)
    rel = relative_paths(df)
    assert rel==sorted(rel) and list(df.columns)==['path','label','split','group','source']
    assert set(df.split)=={''} and set(df.group)=={''} and set(df.source)=={'x'}
    assert {'a/IM_0001','b/1.2.840.113619','b/X.DCM','b/UP.JPEG','b/sub/deep.png'}<=set(rel) and len(rel)==18
    assert df.label.value_counts().to_dict()==dict(a=12, b=6)
    assert {k: v['count'] for k,v in df.attrs['left_out'].items()}=={'hidden': 2, 'not an image name': 1, 'outside a class folder': 2}

@pytest.mark.parametrize('names', ['train valid test', 'Training Val Testing', 'TRAIN dev test', 'train validation TEST'])
def test_index_of_parts(tmp_path, names):
    for n,k in zip(names.split(), (6,2,3)): tree(tmp_path/n, dict(cat=k, dog=1))
    (tmp_path/'extra'/'cat').mkdir(parents=True)
    df = get_index(tmp_path)
    assert df.groupby(['label','split']).size().loc['cat'].to_dict()==dict(train=6, valid=2, test=3)
    assert df.attrs['left_out']=={'outside a class folder': {'count': 1, 'first': ['extra']}}

def test_class_called_test_or_train(tmp_path):
    assert set(get_index(tree(tmp_path, dict(test=2, blood=2, train=2))).label)=={'test','blood','train'}

def test_links(tmp_path):
    root = tree(tmp_path/'x', dict(a=2, b=1))
    other = tree(tmp_path/'y', dict(c=3))
    try:
        (root/'a'/'link.png').symlink_to(other/'c'/'0000.png')
        (root/'c').symlink_to(other/'c', target_is_directory=True)
        (root/'b'/'loop').symlink_to(root/'b', target_is_directory=True)
        (root/'b'/'dead.png').symlink_to(root/'nothing.png')
    except OSError: pytest.skip('this system makes no symbolic links')
    df = get_index(root)
    assert df.label.value_counts().to_dict()==dict(a=3, b=1, c=3)
    assert {k: v['first'] for k,v in df.attrs['left_out'].items()}=={'link in a loop': ['b/loop'], 'not a file': ['b/dead.png']}

def test_nothing_there(tmp_path):
    (tmp_path/'empty'/'class').mkdir(parents=True)
    for p,what in ((tmp_path/'no', 'neither a folder nor a known source'), (tmp_path/'empty', 'Expected root/<class>/<image>')):
        with pytest.raises(DataNotFoundError, match=what): get_index(p)
    tree(tmp_path/'up'/'MedNIST', dict(a=2, b=2))
    with pytest.raises(DataNotFoundError, match='Did you mean .*MedNIST'): get_index(tmp_path/'up')

@pytest.mark.skipif(os.name!='posix' or (hasattr(os, 'geteuid') and os.geteuid()==0), reason='needs a user whom permissions bind')
def test_class_folder_that_cannot_be_listed(tmp_path):
    root = tree(tmp_path, dict(a=1, b=1))
    (root/'b').chmod(0)
    try:
        with pytest.raises(DataError, match='cannot be listed'): get_index(root)
    finally: (root/'b').chmod(stat.S_IRWXU)

def test_names_that_are_not_ascii(tmp_path):
    root = tree(tmp_path/'ü', {'é 1': 2, '肝': 2})
    assert set(get_index(root).label)=={'é 1','肝'} and len(make_split(get_index(root), valid=0, test=.5))==4

def test_digests_are_golden():
    df = frame(dict(a=30, b=21))
    assert index_digest(df)==index_digest(df.iloc[::-1])=='da20b2f62db811f625ba38ffb724290b4aed82db82f6eda3946374ee5a89177c'
    assert make_split(df).attrs['split']['digest']=='e6e224a66308a4e760a3c84db825b4f544a03fc7c70408adb7d640081f52b5ad'
    blocks = make_split(df, 'blocks', fold=2, k=5, gap=1)
    assert blocks.attrs['split']['digest']=='444c91c049c43f70c83692709d96d6f58572e3a2df6f7fbc23970753063fbd4b'
    moved = df.assign(path=df.path.str.replace('/nowhere', '/other place/x'))
    moved.attrs['root'] = '/other place/x'
    assert index_digest(moved)==index_digest(df) and split_digest(make_split(moved))==split_digest(make_split(df))

def test_index_without_root():
    df = frame(dict(a=3))
    df.attrs = {}
    with pytest.raises(DataError, match='root'): index_digest(df)

# --- splits

@pytest.mark.parametrize('seed', range(5))
@pytest.mark.parametrize('counts', [dict(a=3, b=4), dict(a=10, b=95, c=1000), dict(a=8954), dict(a=25, b=15)], ids=str)
@pytest.mark.parametrize('valid,test', [(.1,.1), (.2,.2), (0,.1), (.15,0), (.3,.05)])
def test_random_split(counts, seed, valid, test):
    df = frame(counts)
    out = make_split(df, 'random', seed=seed, valid=valid, test=test)
    for l,n in counts.items():
        got = out[out.label==l].split.value_counts()
        for part,share in (('valid',valid), ('test',test)): assert got.get(part,0)==(max(1, round(n*share)) if share else 0)
        assert got.sum()==n
    back = make_split(df.sample(frac=1, random_state=seed), 'random', seed=seed, valid=valid, test=test).sort_index()
    assert list(back.split)==list(out.split) and set(df.split)=={''}

def test_seeds_differ_and_stay():
    df = frame(dict(a=200, b=200))
    digests = [make_split(df, seed=s).attrs['split']['digest'] for s in range(20)]
    assert len(set(digests))==20

@pytest.mark.parametrize('seed', range(8))
def test_grouped_by_column(seed):
    rng = np.random.default_rng(seed)
    group = {}
    df = frame(dict(a=600, b=400, c=50), groups=lambda l,i: group.setdefault((l,i), f'p{rng.integers(0,150)}')) # patients span classes
    out = make_split(df, 'grouped', seed=seed)
    assert (out.groupby('group').split.nunique()==1).all() and out.attrs['split']['by']=='group column'
    share = out.groupby('label').split.value_counts(normalize=True).unstack()
    assert share.loc[['a','b'], ['valid','test']].sub(.1).abs().max().max()<.03
    assert (out.groupby('label').split.nunique()==3).all()

def test_grouped_with_few_large_groups():
    df = frame(dict(a=90, b=60), groups=lambda l,i: f'{l}{i//30}')
    with pytest.raises(SplitError, match='b would have none in valid'): make_split(df, 'grouped')
    out = make_split(df[df.label=='a'], 'grouped')
    assert out.split.value_counts().to_dict()==dict(train=30, valid=30, test=30)

def test_files_without_a_group_stand_alone():
    df = frame(dict(a=100), groups=lambda l,i: 'p1' if i<20 else '')
    out = make_split(df, 'grouped')
    assert out[out.group=='p1'].split.nunique()==1 and out.split.value_counts().to_dict()==dict(train=80, valid=10, test=10)

@pytest.mark.parametrize('k,gap,n', [(10,50,1000), (3,0,10), (5,2,57), (10,0,11)])
def test_blocks(k, gap, n):
    df = frame(dict(a=n, b=n+3))
    tested = []
    for fold in range(k):
        out = make_split(df, 'blocks', fold=fold, k=k, gap=gap)
        tested += list(out[out.split=='test'].path)
        for l,d in out.groupby('label'):
            s = list(d.split)
            held = [i for i,o in enumerate(s) if o=='test']
            assert held==list(range(held[0], held[-1]+1)) and abs(len(held)-len(s)/k)<1
            val = [i for i,o in enumerate(s) if o=='valid']
            assert val==list(range(val[0], val[-1]+1))
            for i,o in enumerate(s):
                if o=='train': assert min(abs(i-j) for j in held+val)>gap
                if o=='valid': assert min(abs(i-j) for j in held)>gap
    assert sorted(tested)==sorted(df.path)

def test_blocks_use_natural_order():
    df = frame(dict(a=30))
    df['path'] = [f'/nowhere/a/img{i}.png' for i in range(30)]
    out = make_split(df, 'blocks', fold=1, k=10, gap=0)
    assert list(out[out.split=='test'].path)==[f'/nowhere/a/img{i}.png' for i in (3,4,5)]

@pytest.mark.parametrize('groups', [None, lambda l,i: f'{l}{i//5}'])
def test_official(groups):
    df = frame(dict(a=200, b=100), groups=groups)
    with pytest.raises(SplitError, match='no official split'): make_split(df, 'official')
    df['split'] = ['test' if i%4==0 else 'train' for i in range(len(df))]
    out = make_split(df, 'official')
    assert ((out.split=='test')==(df.split=='test')).all() and out.split.value_counts()['valid']==pytest.approx(22, abs=3)
    if groups: assert (out[out.split!='test'].groupby('group').split.nunique()==1).all()
    assert out.attrs['split']['by']==f"authors, validation by {'group column' if groups else 'file'}"
    again = make_split(out, 'official')
    assert list(again.split)==list(out.split) and again.attrs['split']['by']=='authors'

@pytest.mark.parametrize('kw,what', [(dict(how='magic'), 'no split'), (dict(test=1.), 'leave nothing'), (dict(valid=-.1), 'leave nothing'),
    (dict(how='blocks', k=2), 'blocks need'), (dict(how='blocks', fold=10), 'blocks need'), (dict(how='blocks', gap=30), 'none in')])
def test_impossible(kw, what):
    with pytest.raises(SplitError, match=what): make_split(frame(dict(a=100, b=100)), **kw)

def test_too_few_and_twice():
    with pytest.raises(SplitError, match='a would have none in train'): make_split(frame(dict(a=2, b=30)))
    df = frame(dict(a=20))
    with pytest.raises(SplitError, match='twice'): make_split(pd.concat([df, df.iloc[:1]]))

# --- twins and audits

@pytest.fixture(scope='module')
def copies(tmp_path_factory):
    "Three classes of 40; 10 files of `a` are stored three times, as PNG, BMP and with other metadata; one file is broken"
    root = tree(tmp_path_factory.mktemp('copies')/'x', dict(a=40, b=40, c=40), size=64)
    for i in range(10):
        with Image.open(root/'a'/f'{i:04}.png') as im:
            im.save(root/'a'/f'copy{i}.bmp')
            im.save(root/'a'/f'copy{i}.png', dpi=(72,72))
    (root/'b'/'0000.png').write_bytes(b'broken')
    return get_index(root)

@pytest.fixture(scope='module')
def copies_twins(copies): return find_twins(copies)

@pytest.mark.parametrize('seed', range(6))
def test_dedup(copies, copies_twins, seed):
    out = make_split(copies, 'dedup', seed=seed, twins=copies_twins)
    assert (out.split.groupby(copies_twins.exact).nunique()==1).all()
    n = out[out.label=='a'].split.value_counts()
    assert abs(n['test']-6)<=1 and abs(n['valid']-6)<=1 and n.sum()==60 # sets of three can't fill 6 of 60 to the file every time
    assert audit_split(out, copies_twins).table.loc['all','exact_twin']==0

def test_twins_of_copies(copies, copies_twins):
    assert pd.Series(copies_twins.exact).value_counts().value_counts().to_dict()=={3: 10, 1: 110}
    assert len(copies_twins.pairs)==0 and len(copies_twins.errors)==1
    with pytest.raises(DataError, match='another index'): make_split(copies.iloc[::-1], 'dedup', twins=copies_twins)

def test_audit_counts_by_hand(copies, copies_twins):
    out = make_split(copies, seed=3)
    a = audit_split(out, copies_twins)
    s,e = out.split.to_numpy(dtype=object),copies_twins.exact
    want = sum(any(s[j]=='train' for j in np.flatnonzero(e==e[i])) for i in np.flatnonzero(s=='test'))
    assert a.table.loc['all','exact_twin']==a.table.loc['all','near_twin']==want>0
    assert a.table.loc['all',['train','valid','test','left_out']].sum()==len(out)
    assert (a.pairs.distance==0).all() and (a.pairs.split_a!=a.pairs.split_b).all() and set(a.pairs.split_a)<={'test','valid'}
    assert len(a.unreadable)==1 and 'Split random' in repr(a) and '<table' in a._repr_html_()
    w = a.wrong[a.wrong.nearness=='raw']
    assert len(w)==a.table.loc['all','1nn_errors']
    assert set(w.path)<=set(out[out.split=='test'].path) and set(w.neighbour)<=set(out[out.split=='train'].path)

def test_audit_without_a_split(copies, copies_twins):
    with pytest.raises(SplitError, match='Nothing to compare'): audit_split(copies, copies_twins)

@pytest.mark.parametrize('colour', [False, True])
def test_near_pairs_against_the_plain_way(colour):
    rng = np.random.default_rng(1)
    base = rng.normal(128, 40, (60, 32, 32, 3) if colour else (60, 32, 32))
    noise = rng.normal(0, 1, base.shape)*rng.uniform(0, 20, (60,)+(1,)*(base.ndim-1))
    x = np.concatenate([base, base+noise, np.full((3,)+base.shape[1:], 7.)]).clip(0, 255).astype(np.uint8)
    z = x.reshape(len(x), -1).astype(float)
    z -= z.mean(1, keepdims=True)
    z /= np.maximum(z.std(1, keepdims=True), 10)
    full = np.sqrt(((z[:,None]-z[None])**2).mean(2))
    i,j = np.nonzero(np.triu(full<=.3, 1))
    pairs,d = near_pairs(x, .3)
    assert {tuple(o) for o in pairs}==set(zip(i,j)) and len(i)>10
    assert np.allclose(d, full[pairs[:,0],pairs[:,1]], atol=1e-6)

def test_near_pairs_have_a_limit():
    with pytest.raises(DataError, match='smaller distance'): near_pairs(np.zeros((100,16,16), np.uint8), max_pairs=1000)

def test_nearest_against_the_plain_way():
    rng = np.random.default_rng(2)
    x = rng.integers(0, 256, (300,8,8), dtype=np.uint8)
    x[250:] = x[:50]//2 + 60 # alike but for contrast and brightness
    x[100] = x[40] # a tie
    train,test = np.arange(0, 200),np.arange(200, 300)
    got = nearest_pixels(x, test, train, chunk=7)
    f = x.reshape(300,-1).astype(np.int64)
    d = ((f[test,None]-f[None,train])**2).sum(2)
    assert (got['raw']==train[d.argmin(1)]).all()
    c = d*64 - (f[test,None]-f[None,train]).sum(2)**2
    assert (got['centred']==train[c.argmin(1)]).all()

def test_exact_groups():
    x = np.random.default_rng(0).integers(0, 256, (10,4,4), dtype=np.uint8)
    x[7] = x[2]
    assert list(exact_groups(x))==[0,1,2,3,4,5,6,2,8,9]

# --- sources with a table, and the layout of each

HEAD = ('Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,OriginalImage[Width,Height],'
    'OriginalImagePixelSpacing[x,y]')
NIH = {'00000001_000': ('Edema|Effusion', 1), '00000001_001': ('No Finding', 1), '00000002_000': ('Pneumonia', 2), '00000013_000': ('None', 13)}

@pytest.fixture
def nih(tmp_path, home):
    "A folder of NIH's layout: four images and their table"
    root = tmp_path/'shelf'/'nih_cxr'
    put(root, *(f'images/{n}.jpg' for n in NIH))
    (root/'labels.csv').write_text('\n'.join([HEAD, *(f'{n}.png,{l},0,{p},50,M,PA,3056,2544,0.139,0.139' for n,(l,p) in NIH.items())]))
    return root

ELSEWHERE = [('known','AbdomenCT','msdliver','10003','CC BY-SA 4.0'), ('known','AbdomenCT','msdliver','10003','CC BY-SA 4.0'),
    ('known','AbdomenCT','msdspleen','10003','CC BY-SA 4.0'), ('known','HeadCT','ctich','','CC BY 4.0'), ('known','HeadCT','cpaisd','','CC BY 4.0'),
    ('strangers','photo','kodak','','released'), ('strangers','fundus','fives','0003','CC BY 4.0')]

@pytest.fixture
def other(tmp_path, home):
    "A folder of the layout of `elsewhere`: five known images and two strangers, these in colour"
    root = tmp_path/'shelf'/'elsewhere'
    files = [f'{o[0]}/{o[1]}/{o[2]}__{i}.jpg' for i,o in enumerate(ELSEWHERE)]
    for f in files: put(root, f, mode='RGB' if 'strangers' in f else 'L')
    rows = [','.join([f, *o[:4], 'was.png', o[4], '0.8', '']) for f,o in zip(files, ELSEWHERE)]
    (root/'manifest.csv').write_text('\n'.join(['file,part,label,source,patient,original,licence,mednist_r,note', *rows]))
    return root

@pytest.fixture
def chest(tmp_path, home):
    "A folder of the layout of `chest_xray`"
    root = tmp_path/'shelf'/'chest_xray'
    put(root, *(f'train/NORMAL/{a}IM-{n:04}-0001{b}.jpeg' for n in (115, 116, 117) for a in ('', 'NORMAL2-') for b in ('', '-0001')))
    put(root, *(f'train/PNEUMONIA/person{n}_{k}_{10*n+i}.jpeg' for n in (7, 8, 9) for k in ('bacteria', 'virus') for i in range(3)))
    put(root, 'test/NORMAL/IM-0001-0001.jpeg', 'test/NORMAL/NORMAL2-IM-0001-0001.jpeg', 'test/PNEUMONIA/person7_virus_1.jpeg')
    put(root, 'train/PNEUMONIA/person1949_virus_1_2.jpeg')
    (root/'SOURCE.md').write_text('x')
    return root

def found(name, root): return get_index(name, root, verify=False)

def test_chest_xray_patients(chest):
    df = found('chest_xray', chest.parent)
    assert list(df.columns)==['path','label','split','group','source'] and df.attrs['source']=='chest_xray'
    assert df.split.value_counts().to_dict()==dict(train=31, test=3) and set(df.label)=={'NORMAL','PNEUMONIA'}
    assert {'IM-0115','NORMAL2-IM-0115','person7_bacteria','person7_virus','person1949_virus'}<=set(df.group) and '' not in set(df.group)
    assert df.group.value_counts()[['IM-0115','person8_virus']].tolist()==[2,3]
    assert df.attrs['left_out']=={'outside a class folder': {'count': 1, 'first': ['SOURCE.md']}}
    out = make_split(df, 'official', valid=.3)
    inner = out[out.split!='test']
    assert (inner.groupby('group').split.nunique()==1).all() and list(out.path[out.split=='test'])==list(df.path[df.split=='test'])
    assert (found('chest_xray', chest).path==df.path).all() # the folder itself will do as well
    with pytest.raises(DataCorruptError, match='NORMAL: 14 files, expected 1,575'): get_index('chest_xray', chest)

def test_nih_table(nih):
    df = found('nih_cxr', nih.parent)
    assert list(df.label)==['Edema|Effusion','','Pneumonia','None'] and list(df.group)==['1','1','2','13'] and set(df.split)=={''}
    assert relative_paths(df)==[f'images/{n}.jpg' for n in NIH] and df.attrs['source']=='nih_cxr' and df.attrs['left_out']=={}
    assert found('nih_cxr', nih).equals(df)
    with pytest.raises(DataCorruptError, match='Edema: 1 files, expected 113'): get_index('nih_cxr', nih)

def test_nih_table_as_it_was_first_published(nih):
    "With a comma at the end of each row, a byte order mark, and PNG files"
    table = (nih/'labels.csv').read_text().split('\n')
    (nih/'labels.csv').write_text('\n'.join(o+',' for o in table), encoding='utf-8-sig')
    for o in (nih/'images').iterdir(): o.rename(o.with_suffix('.png'))
    df = found('nih_cxr', nih)
    assert list(df.group)==['1','1','2','13'] and relative_paths(df)[0]=='images/00000001_000.png'

def test_table_and_folder_disagree(nih):
    put(nih, 'images/unknown.jpg', 'images/deep/more.jpg')
    (nih/'images'/'notes.txt').write_text('x')
    assert {k: v['first'] for k,v in found('nih_cxr', nih).attrs['left_out'].items()}=={
        'not an image name': ['images/notes.txt'], 'not in labels.csv': ['images/deep/more.jpg','images/unknown.jpg']}
    (nih/'images'/'00000002_000.jpg').unlink()
    with pytest.raises(DataCorruptError, match='4 images of images; 1 of them are not there, such as images/00000002_000.png.*partial=True'): found('nih_cxr', nih)
    shutil.rmtree(nih/'images')
    with pytest.raises(DataCorruptError, match='4 of them are not there'): found('nih_cxr', nih)

@pytest.mark.parametrize('spoil,error,what', [('gone', DataNotFoundError, 'holds no labels.csv'), ('empty', DataCorruptError, 'cannot be read'),
    ('binary', DataCorruptError, 'cannot be read'), ('columns', DataCorruptError, 'no column Finding Labels, Patient ID'),
    ('twice', DataCorruptError, 'more than once'), ('outside', DataCorruptError, 'not there, such as images/../../secret.jpg')])
def test_bad_table(nih, spoil, error, what):
    p = nih/'labels.csv'
    text = p.read_text()
    put(nih.parent, 'secret.jpg')
    if spoil=='gone': p.unlink()
    if spoil=='empty': p.write_text('')
    if spoil=='binary': p.write_bytes(b'\xff\xfe\x00,\x81\n')
    if spoil=='columns': p.write_text('Image Index,x\na.png,1\n')
    if spoil=='twice': p.write_text(text+'\n'+text.split('\n')[1])
    if spoil=='outside': p.write_text(text.replace('00000001_000.png', '../../secret.jpg'))
    with pytest.raises(error, match=re.escape(what)): found('nih_cxr', nih.parent)

def test_elsewhere_and_strangers(other):
    df,st = found('elsewhere', other.parent),found('strangers', other.parent)
    assert list(df.columns)==['path','label','split','group','source','licence'] and (df.attrs['source'],st.attrs['source'])==('elsewhere','strangers')
    assert sorted(df.group)==['','','msdliver-10003','msdliver-10003','msdspleen-10003'] # one number, two people
    assert set(df.source)=={'msdliver','msdspleen','ctich','cpaisd'} and set(st.label)=={'photo','fundus'} and sorted(st.group)==['','fives-0003']
    assert df.licence[df.source=='msdliver'].iloc[0]=='CC BY-SA 4.0'
    put(other, 'known/HeadCT/new.jpg', 'strangers/photo/new.jpg')
    assert found('elsewhere', other).attrs['left_out']=={'not in manifest.csv': {'count': 1, 'first': ['known/HeadCT/new.jpg']}}

def test_colour_strangers_in_twins_and_audit(other):
    df = pool_index(found('elsewhere', other), found('strangers', other).assign(label='stranger'))
    shutil.copy(other/'strangers/photo/kodak__5.jpg', other/'strangers/fundus/fives__6.jpg')
    twins = find_twins(df)
    assert not twins.errors and (twins.exact!=np.arange(len(df))).sum()==1
    out = df.assign(split=['train','test','train','test','train','train','test'])
    assert audit_split(out, twins).table.loc['stranger','exact_twin']==1
    assert find_twins(df, mode='RGB').pixels.shape==(7,64,64,3)

def test_table_counts_in_the_content(other, tmp_path, monkeypatch):
    "An archive is found, unpacked and verified with its table; another label in the table is another set"
    df = found('elsewhere', other)
    digest = content_digest(df, also=['manifest.csv'])
    lines = sorted(f'{hashlib.sha256((other/o).read_bytes()).hexdigest()}  {o}' for o in [*relative_paths(df), 'manifest.csv'])
    lines = sorted(lines, key=lambda o: o.split('  ')[1])
    assert digest==hashlib.sha256(('\n'.join(lines)+'\n').encode()).hexdigest()!=content_digest(df)
    monkeypatch.setitem(SOURCES, 'elsewhere', replace(SOURCES['elsewhere'], digest=digest, counts=dict(AbdomenCT=3, HeadCT=2)))
    packs = tmp_path/'packs'
    packs.mkdir()
    shutil.make_archive(str(packs/'elsewhere'), 'xztar', other.parent, 'elsewhere')
    got = get_index('elsewhere', packs)
    assert Path(got.attrs['root'])==fastai_folder()/'elsewhere' and got.attrs['digest']==df.attrs['digest']
    assert Path(found('strangers', packs).attrs['root'])==fastai_folder()/'elsewhere'
    shutil.make_archive(str(tmp_path/'flat'), 'xztar', other) # without the folder around it is known by its table
    assert unpack(f'{tmp_path}/flat.tar.xz', tmp_path/'here', SOURCES['elsewhere']).is_dir()
    table = (other/'manifest.csv').read_text()
    (other/'manifest.csv').write_text(table.replace('ctich,,', 'cpaisd,,'))
    with pytest.raises(DataCorruptError, match='not .* as recorded here.*names or bytes differ.*unpack elsewhere.tar.xz again'): get_index('elsewhere', other)
    assert 'ctich' not in set(found('elsewhere', other).source)

@pytest.mark.parametrize('name,where', [('chest_xray', 'doi.org'), ('nih_cxr', 'nihcc.app.box.com'), ('elsewhere', 'SOURCE.md'), ('strangers', 'SOURCE.md')])
def test_what_is_not_served_is_not_fetched(home, monkeypatch, name, where):
    monkeypatch.setattr(data, 'download', lambda *a, **k: pytest.fail('a download was tried'))
    with pytest.raises(DataNotFoundError, match='nothing was downloaded') as e: get_index(name)
    src = SOURCES[name]
    for o in (where, src.archive, f'folder {src.folder} ', str(home/'archive'), DATA_ENV): assert o in str(e.value)

# --- pooling

def test_pool(chest, nih, other):
    parts = [found('nih_cxr', nih).assign(label='CXR'), found('elsewhere', other), found('chest_xray', chest)]
    df = pool_index(*parts)
    assert list(df.columns)==['path','label','split','group','source','projection','sex','age','licence'] and len(df)==4+5+34
    rel = relative_paths(df)
    assert rel==sorted(rel) and {o.split('/')[0] for o in rel}=={'nih_cxr','elsewhere','chest_xray'} and df.attrs['root']==str(chest.parent)
    assert df.attrs['source']=='nih_cxr+elsewhere+chest_xray' and df.attrs['digest']==index_digest(df)
    assert df.attrs['left_out']=={'chest_xray: outside a class folder': {'count': 1, 'first': ['SOURCE.md']}}
    assert not df.isna().any().any() and set(df.licence[df.source=='nih_cxr'])=={''} and (df.split=='train').sum()==31
    assert set(df.group[df.source=='nih_cxr'])=={'nih_cxr-1','nih_cxr-2','nih_cxr-13'} and 'msdliver-10003' in set(df.group) and '' in set(df.group)
    again = pool_index(pool_index(*parts[:2]), parts[2])
    assert again.equals(df) and again.attrs==df.attrs
    assert pool_index(*parts[::-1])[df.columns].equals(df)
    moved = df.assign(label='x')
    assert moved.attrs==df.attrs and relative_paths(moved)==rel # pandas keeps attrs

def test_pool_wherever_the_folders_lie(nih, other, tmp_path):
    near = pool_index(found('nih_cxr', nih), found('elsewhere', other))
    far = pool_index(found('nih_cxr', shutil.copytree(nih, tmp_path/'a'/'b'/'nih_cxr')), found('elsewhere', other))
    assert far.attrs['root']==str(tmp_path) and far.attrs['digest']==near.attrs['digest']
    assert all(Path(p).is_file() for p in far.path) and relative_paths(far)==relative_paths(near)
    a,b = (make_split(o, 'sources', hold='nih_cxr', valid=0).attrs['split']['digest'] for o in (near.assign(label='x'), far.assign(label='x')))
    assert a==b
    with pytest.raises(DataError, match='Two folders of one name'): pool_index(found('nih_cxr', nih), found('nih_cxr', tmp_path/'a'/'b'))

def test_pool_of_one_folder(other):
    parts = [found('elsewhere', other), found('strangers', other)]
    df = pool_index(*parts)
    assert df.attrs['root']==str(other) and df.attrs['source']=='elsewhere+strangers' and relative_paths(df)[0].startswith('known/')
    assert pool_index(parts[0]).equals(parts[0]) and pool_index(parts[0]).attrs['digest']==parts[0].attrs['digest']

def test_pool_of_nested_folders(tmp_path):
    tree(tmp_path/'out', dict(a=2, b=1))
    tree(tmp_path/'out'/'.in', dict(a=1)) # hidden, so the outer index does not list it
    df = pool_index(get_index(tmp_path/'out'), get_index(tmp_path/'out'/'.in'))
    assert relative_paths(df)==['.in/a/0000.png', 'out/a/0000.png', 'out/a/0001.png', 'out/b/0000.png']

def test_pool_refuses(nih):
    df = found('nih_cxr', nih)
    with pytest.raises(DataError, match='1 files are in more than one of these indexes, such as .*00000001_000.jpg'): pool_index(df, df.iloc[:1])
    with pytest.raises(DataError, match='nothing to pool'): pool_index()
    lost = df.copy()
    lost.attrs = {}
    with pytest.raises(DataError, match='root'): pool_index(lost)

# --- splits by source

@pytest.fixture
def many():
    "Three classes; each from source s0, s1, s2 in turn, in groups of 5 within a source; s2 names no groups"
    df = frame(dict(a=300, b=150, c=60))
    n = df.groupby('label').cumcount()
    df['source'] = [f's{i%3}' for i in n]
    df['group'] = [f'{s}-{l}{i//15}' if s!='s2' else '' for s,l,i in zip(df.source, df.label, n)]
    return df

@pytest.mark.parametrize('seed', range(4))
@pytest.mark.parametrize('hold', ['s0', ('s2',), ['s2','s1']], ids=str)
def test_split_by_source(many, hold, seed):
    out = make_split(many, 'sources', hold=hold, seed=seed, valid=.2)
    held = {hold} if isinstance(hold, str) else set(hold)
    assert ((out.split=='test')==out.source.isin(held)).all() and '' not in set(out.split)
    rest = out[out.split!='test']
    assert (rest[rest.group!=''].groupby('group').split.nunique()==1).all()
    assert (rest.groupby('label').split.value_counts(normalize=True).unstack().valid-.2).abs().max()<.06
    s = out.attrs['split']
    assert s['hold']==sorted(held) and 'test' not in s and s['by']=='source, then group column' and s['counts']['test']==170*len(held)
    again = make_split(many.sample(frac=1, random_state=seed), 'sources', hold=sorted(held), seed=seed, valid=.2)
    assert again.attrs['split']['digest']==s['digest']
    assert make_split(many, 'sources', hold=hold, seed=seed+100, valid=.2).attrs['split']['digest']!=s['digest']

def test_split_by_source_golden(many):
    assert make_split(many, 'sources', hold='s1').attrs['split']['digest']=='31792e325ff73767bc1309aeae15375ce2a2a74ab3da0238c5020f0a8efb1d4c'
    assert make_split(many, 'sources', hold='s1', valid=0).split.value_counts().to_dict()==dict(train=340, test=170)

def test_split_by_source_refuses(many):
    for hold in ((), 'nowhere', ('s1','nowhere')):
        with pytest.raises(SplitError, match='its sources: s0, s1, s2'): make_split(many, 'sources', hold=hold)
    with pytest.raises(SplitError, match='none in train'): make_split(many, 'sources', hold=('s0','s1','s2'))
    only = many[(many.label!='c') | (many.source=='s1')]
    with pytest.raises(SplitError, match='c would have none in train'): make_split(only, 'sources', hold='s1')
    assert set(make_split(only, 'sources', hold='s0').label)=={'a','b','c'} # a class may miss in test
    with pytest.raises(SplitError, match='two parts'): make_split(many.assign(group='one'), 'sources', hold='s1', valid=0)

def test_split_by_source_leaves_twins_out(tmp_path):
    a,b = (get_index(tree(tmp_path/n, dict(x=20, y=20), seed=i, size=64)) for i,n in enumerate('ab'))
    shutil.copy(a.path[0], b.path[3])
    df = pool_index(a, b)
    out = make_split(df, 'sources', hold='b', twins=find_twins(df))
    assert relative_paths(out[out.split==''])==['a/x/0000.png'] and 'near twins' in out.attrs['split']['by']

# --- several findings

@pytest.mark.parametrize('how', ['random', 'grouped'])
@pytest.mark.parametrize('seed', range(5))
def test_findings_are_shared_out_one_by_one(how, seed):
    rng = np.random.default_rng(seed)
    names = ['A','B','C','D','E']
    df = frame(dict(a=600), groups=lambda l,i: f'p{i//3}')
    df['label'] = ['|'.join(n for n,p in zip(names, (.5,.3,.2,.1,.05)) if rng.random()<p) for _ in range(len(df))]
    out = make_split(df, how, seed=seed)
    n = out.assign(label=out.label.str.split('|')).explode('label').groupby(['label','split']).size().unstack(fill_value=0)
    share = n.div(n.sum(1), axis=0)
    assert (n>0).all().all() # rare findings are there; frequent ones come near their shares
    assert share.loc[['A','B','C',''], ['valid','test']].sub(.1).abs().max().max()<.07
    if how=='grouped': assert (out.groupby('group').split.nunique()==1).all()

def test_findings_that_can_not_be_shared():
    df = frame(dict(a=50)).assign(label=['Hernia|Mass']+['Mass']*49)
    with pytest.raises(SplitError, match='Hernia would have none in'): make_split(df)

# --- the real thing

def real(name):
    "The index of a source, where the environment variable names a folder that has it; else the test is skipped"
    src = SOURCES[name]
    if not os.getenv(DATA_ENV): pytest.skip(f'{DATA_ENV} names no folder with {src.folder}')
    try: place = data._named_place(None, src)
    except DataNotFoundError as e: pytest.skip(str(e))
    if not (data._unpacked(place, src) or data._packed(place, src)): pytest.skip(f'{DATA_ENV} names a folder without {src.folder}')
    return get_index(name)

def test_real_chest_xray():
    df = real('chest_xray')
    assert df.attrs['digest']=='e897740bb29865dc535e2e9e6229ff37866fe28eb984dafb24f2a10e232b8516'
    assert df.groupby(['split','label']).size().to_dict()=={('test','NORMAL'): 234, ('test','PNEUMONIA'): 390, ('train','NORMAL'): 1341,
        ('train','PNEUMONIA'): 3875}
    assert '' not in set(df.group) and (df.groupby('group').split.nunique()==1).all()
    assert df[df.label=='NORMAL'].groupby('split').group.nunique().to_dict()==dict(test=225, train=1211)
    number = df[df.label=='PNEUMONIA'].assign(number=lambda o: o.group.str.extract(r'person(\d+)_')[0])
    assert number[number.split=='test'].number.isin(number[number.split=='train'].number).sum()==320 # by number alone most of test looks shared
    out = make_split(df, 'official')
    assert (out.groupby('group').split.nunique()==1).all() and out.split.value_counts().to_dict()==dict(train=4694, valid=522, test=624)

def test_real_nih_cxr():
    df = real('nih_cxr')
    assert len(df)==1605 and df.group.nunique()==1281 and (df.label=='').sum()==600 and set(df.projection)=={'AP','PA'} and df.attrs['digest']=='483a92b321a07ca24f9b8aca53ee9f98f98b2b2febb0fb16bdb1bc23a45dc5a6'
    out = make_split(df, 'grouped')
    assert (out.groupby('group').split.nunique()==1).all()
    assert out.attrs['split']['digest']=='47bbcab61208c540f9694cd6f9a6622cbde96d2b091e6ae1eae5552cafa61728'

def test_real_pooled_digest():
    "The pool that records of studies name by its digest: another label for no finding does not touch it"
    df = pool_index(real('elsewhere'), real('chest_xray').assign(label='CXR'), real('nih_cxr').assign(label='CXR'))
    assert df.attrs['digest']=='b4dda8c8767b70a0340726ccef03acf5cd840107ef70faa216bc9e848641e245' and len(df)==8577

def test_real_pbc8():
    df = real('pbc8')
    assert df.attrs['digest']=='d5f82096460c4f48aa64658031421615cf5c0b070eeb50cd69d80608829954cb' and df.label.value_counts().unique().tolist()==[640]
    assert make_split(df).split.value_counts().to_dict()==dict(train=4096, valid=512, test=512)

def test_real_elsewhere():
    df,st = real('elsewhere'),real('strangers')
    assert (len(df),df.source.nunique(),len(st),st.label.nunique())==(1132,13,605,8)
    assert df.attrs['digest']=='b68eba48c8feaf9ef3f7605559d8819753db264b142b72974950858d299950fa'
    assert st.attrs['digest']=='b1ad84e754181561bd0f5fd5b3796a8121a39bcab59839c239de7d90064aea84'
    assert set(df.source[df.licence.str.contains('NC|non-commercial|not established')])=={'duke10','duke153','shsnet','kitamura'}
    pooled = pool_index(df, st.assign(label='stranger'))
    out = make_split(pooled, 'sources', hold=('msdliver','ctich','duke153','shsnet','msdlung','pbc','kodak'))
    assert out.attrs['split']['counts']=={'train': 1019, 'valid': 113, 'test': 605, '': 0}
    twins = find_twins(out)
    assert not twins.errors and audit_split(out, twins).table.loc['all','near_twin']==0

def test_real_nih_is_in_mednist():
    "MedNIST's CXR are NIH's: `nih_cxr` is no other hospital, `chest_xray` is"
    df = real('mednist')
    df = pool_index(df[df.label=='CXR'], real('nih_cxr'), real('chest_xray'))
    p,source = find_twins(df).pairs,df.source.to_numpy(dtype=object)
    p = p[source[p[:,0]]!=source[p[:,1]]]
    n = Counter(source[np.unique(p)])
    assert abs(n['nih_cxr']-156)<3 and n['chest_xray']==0

@pytest.fixture(scope='module')
def mednist(): return real('mednist')

MEDNIST_SPLITS = {
    ('random', 0): '61f32861f3099658cfeab30348cb9261905b58cdbcc93929c0dadf6943252705',
    ('random', 1): '1b130f5660814eb30ddbf9fbe82dcce4710c24062449fe5167ccea09db298009',
    ('blocks', 0): '1ebeb77fc3bd8cf8811599b2469ff904dadd7af13a3468b7b6105d40958293bd',
    ('blocks', 4): '9cb3c7d496199fd8feb874276cd1d64e496ae54c443f10ce3fe686b55397f7d3'}

def test_mednist_index(mednist):
    assert len(mednist)==58_954 and mednist.attrs['digest']=='dee68f7569ba06dd687b0ab30cc174169e00246e0d2e28c630a448550cca6d50'

@pytest.mark.parametrize('how,n', MEDNIST_SPLITS)
def test_mednist_splits(mednist, how, n):
    out = make_split(mednist, how, **{'fold' if how=='blocks' else 'seed': n})
    assert out.attrs['split']['digest']==MEDNIST_SPLITS[how,n]
    if how=='random': assert out.split.value_counts().to_dict()==dict(train=47_164, valid=5_895, test=5_895)

@pytest.fixture(scope='module')
def mednist_twins(mednist): return find_twins(mednist)

def test_mednist_twins(mednist, mednist_twins):
    assert (mednist_twins.exact!=np.arange(len(mednist))).sum()==440 and not mednist_twins.errors
    assert abs(len(mednist_twins.pairs)-11_493)<20 # another JPEG decoder may differ by a grey level here and there
    table = audit_split(make_split(mednist), mednist_twins).table
    assert table.loc['all','exact_twin']==69
    assert (table.near_share[['AbdomenCT','BreastMRI']]>.4).all() and (table.near_share[['CXR','ChestCT','Hand']]<=.002).all()
    assert table.loc['all','1nn_errors']<20 and table.loc['all','1nn_errors_centred']<60

@pytest.mark.parametrize('how', ['dedup', 'grouped'])
def test_mednist_splits_by_twins(mednist, mednist_twins, how):
    out = make_split(mednist, how, twins=mednist_twins)
    assert out.split.value_counts().to_dict()==dict(train=47_164, valid=5_895, test=5_895)
    exact,near = data._has_twin(mednist_twins, (out.split=='train').to_numpy())
    assert not (exact & (out.split!='train')).any() and (how=='dedup' or not (near & (out.split!='train')).any())

def test_mednist_block_split(mednist, mednist_twins):
    table = audit_split(make_split(mednist, 'blocks'), mednist_twins).table
    assert table.loc['all','1nn_errors']<20 and table.loc['all','1nn_errors_centred']>500 # brightness gives the class away, shape does not
    def left(gap, **kw):
        "Test files with a near twin in train, per class, in two of the ten folds: a split of all files takes seconds"
        got = [make_split(mednist, 'blocks', fold=i, gap=gap, **kw) for i in (3,7)]
        return sum(o[data._has_twin(mednist_twins, (o.split=='train').to_numpy())[1] & (o.split=='test')].label.value_counts()
            .reindex(SOURCES['mednist'].classes, fill_value=0) for o in got)
    near = left(50)
    assert left(0).BreastMRI>15 and 0<near.BreastMRI<10 and left(100).BreastMRI==0 and 400<near.AbdomenCT<440
    assert left(50, twins=mednist_twins).sum()==0
