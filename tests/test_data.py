"Mechanism of `mednist_fastai.data`: downloads that fail, hostile archives, processes at once, digests, splits; real MedNIST if at hand"
import hashlib, http.server, io, multiprocessing, os, re, shutil, stat, tarfile, threading, zipfile
from dataclasses import replace
from pathlib import Path
import numpy as np, pandas as pd, pytest
from PIL import Image
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
    again = make_split(out, 'official')
    assert list(again.split)==list(out.split)

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

# --- the real thing

@pytest.fixture(scope='module')
def mednist():
    if not os.getenv(DATA_ENV): pytest.skip(f'{DATA_ENV} names no folder with MedNIST')
    try: place = data._named_place(None, SOURCES['mednist'])
    except DataNotFoundError as e: pytest.skip(str(e))
    there = data._unpacked(place, SOURCES['mednist']) or data._packed(place, SOURCES['mednist'])
    if not there: pytest.skip(f'{DATA_ENV} names a folder without MedNIST')
    return get_index('mednist')

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
        "Test files with a near twin in train, per class, over the ten folds"
        got = [make_split(mednist, 'blocks', fold=i, gap=gap, **kw) for i in range(10)]
        return sum(o[data._has_twin(mednist_twins, (o.split=='train').to_numpy())[1] & (o.split=='test')].label.value_counts()
            .reindex(SOURCES['mednist'].classes, fill_value=0) for o in got)
    assert left(0).BreastMRI>100 and 10<left(50).BreastMRI<30 and left(100).BreastMRI==0 and .07<left(50).AbdomenCT/10_000<.09
    assert left(50, twins=mednist_twins).sum()==0
