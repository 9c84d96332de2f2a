"""Dockerfile and compose.yaml without Docker: each step of the one is done here in a folder, each line of the other is checked or run against a real PostgreSQL,
and so is each command of the README's section about them. An instruction, a key or a command that this file has no way to do fails."""
import importlib.metadata as metadata, json, os, re, shlex, shutil, signal, subprocess, sys, tempfile, time, urllib.error, urllib.request
from configparser import ConfigParser
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path, PurePosixPath
import pytest
sa = pytest.importorskip('sqlalchemy')
yaml = pytest.importorskip('yaml')
from packaging.requirements import Requirement
from mednist_fastai import store as store_module
from mednist_fastai.store import Store
from test_store import account, box_for, free_port, program, running

root = Path(__file__).parent.parent
compose = yaml.safe_load((root/'compose.yaml').read_text(encoding='utf-8'))
page,database = (compose['services'][o] for o in ('page','database'))
pytestmark = pytest.mark.skipif(os.name!='posix' or not (root/'.git').exists(), reason='needs a checkout on Linux or macOS')

# ---------------------------------------------------------------- the Dockerfile

def instructions():
    "[(word, rest)] of the Dockerfile: comments left out, continued lines joined"
    text = '\n'.join(o for o in (root/'Dockerfile').read_text(encoding='utf-8').splitlines() if not o.lstrip().startswith('#'))
    return [tuple(o.strip().split(None, 1)) for o in re.sub(r'\\\n', ' ', text).splitlines() if o.strip()]

def ignored(path):
    "Does .dockerignore keep a path out? The last line that fits a path, or a folder above it, says so"
    out = False
    for line in (root/'.dockerignore').read_text(encoding='utf-8').splitlines():
        if not line or line.startswith('#'): continue
        p = line.removeprefix('!')
        fits = re.compile(re.escape(p).replace(r'\*\*/', '(?:.*/)?').replace(r'\*', '[^/]*'))
        if any(fits.fullmatch(str(o)) for o in (PurePosixPath(path),*PurePosixPath(path).parents[:-1])): out = not line.startswith('!')
    return out

def flags(words, *bare):
    "{option: value} and the other words of a command"
    opts,rest,words = {},[],iter(words)
    for o in words:
        if o in bare: opts[o] = True
        elif o.startswith('-'): opts[o] = next(words)
        else: rest.append(o)
    return opts,rest

class Image:
    "What the Dockerfile makes, in a folder: each instruction is a method"
    def __init__(self, at):
        self.at,self.cwd,self.env,self.args,self.user,self.done,self.site = at,'/',{},[],'0',[],at/'site'
        self.files = set(subprocess.run(['git','ls-files','-z'], cwd=root, capture_output=True, text=True, check=True).stdout.split('\0'))-{''}
        (at/'etc').mkdir()
        for word,rest in instructions(): getattr(self, word)(rest); self.done.append(word)

    def path(self, p): return self.at/str(PurePosixPath(self.cwd)/p).lstrip('/')

    def FROM(self, o):
        kind,version = re.fullmatch(r'(python):(3\.\d+)-slim-bookworm', o).groups() # from a registry that the engine knows: no host stands here
        cfg = ConfigParser(delimiters=['=']); cfg.read(root/'settings.ini')
        assert int(version[2:])>=int(cfg['DEFAULT']['min_python'][2:])
    def WORKDIR(self, o): self.cwd = o; self.path('.').mkdir(parents=True, exist_ok=True)
    def ARG(self, o): self.args.append(o)
    def USER(self, o): self.user = o
    def VOLUME(self, o): self.volume = self.path(o); assert self.volume.is_dir()
    def EXPOSE(self, o): self.port = o
    def ENV(self, o): self.env.update(p.split('=', 1) for p in shlex.split(o))
    def CMD(self, o): assert not o.startswith('['); self.cmd = o # by `sh -c`
    def HEALTHCHECK(self, o):
        opts,cmd = o.split(' CMD ')
        assert all(re.fullmatch(r'--(interval|timeout|start-period)=\d+s', p) for p in opts.split())
        self.health = json.loads(cmd)

    def COPY(self, o):
        *sources,to = o.split()
        for src in sources:
            every = [p for p in sorted((root/src).rglob('*') if (root/src).is_dir() else [root/src]) if not p.is_dir()]
            new = [r for p in every if not ignored(r := p.relative_to(root).as_posix())]
            assert new, f'{src} is not there, or ignored'
            assert set(new)<=self.files, f'goes into the image, and git does not know it: {sorted(set(new)-self.files)}'
            for r in new:
                dst = self.path(to)/(Path(r).relative_to(src) if (root/src).is_dir() else r)
                dst.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(root/r, dst)

    def RUN(self, o):
        for line in o.split('&&'):
            name,*words = shlex.split(line)
            getattr(self, f'run_{name}')(words)
    def run_useradd(self, words):
        opts,(self.name,) = flags(words, '--no-create-home')
        self.uid,self.home = int(opts['--uid']),opts['--home-dir']
        if os.geteuid() or not shutil.which('useradd'): return
        if Path('/etc/login.defs').exists(): shutil.copy('/etc/login.defs', self.at/'etc')
        subprocess.run(['useradd','--prefix',self.at,*words], check=True, capture_output=True)
        name,_,uid,_,_,home,shell = (self.at/'etc/passwd').read_text().strip().split(':')
        assert (name,int(uid),home)==(self.name,self.uid,self.home) and shell.endswith('nologin')
    def run_install(self, words):
        opts,(at,) = flags(words, '-d')
        assert opts['-o']==self.name
        own = [] if os.geteuid() else ['-o',str(self.uid)]
        subprocess.run(['install','-d','-m',opts['-m'],*own,self.path(at)], check=True)
    def run_pip(self, words):
        "As it stands, but for what it would download"
        assert words[0]=='install'
        _,(what,) = flags(words[1:], '--no-cache-dir')
        self.extras = re.fullmatch(r'\.\[(.*)\]', what)[1].split(',')
        subprocess.run([sys.executable,'-m','pip',*words,'-q','--no-deps','--no-index','--no-build-isolation','--target',self.site], cwd=self.path('.'), check=True, capture_output=True,
            env=os.environ|dict(PIP_ROOT_USER_ACTION='ignore', PIP_DISABLE_PIP_VERSION_CHECK='1'))
    def run_rm(self, words): assert words==['-rf','/build'] and self.path('.')==self.at/'build'; shutil.rmtree(self.at/'build')

@pytest.fixture(scope='module')
def image():
    with tempfile.TemporaryDirectory() as d:
        os.chmod(d, 0o755) # not root alone looks into it
        yield Image(Path(d))

def test_every_step_is_done(image):
    assert image.done==[o for o,_ in instructions()] and image.done.count('CMD')==image.done.count('HEALTHCHECK')==1
    assert image.user==str(image.uid)!='0' and image.home=='/data' and image.volume.name=='data' and f'--port {image.port} ' in image.cmd
    if not os.geteuid(): assert image.volume.stat().st_uid==image.uid and image.volume.stat().st_mode&0o777==0o700

def test_nothing_private_goes_in():
    for o in ('.env','.git/config','data/x.png','tests/test_docker.py','nbs/index.ipynb','store/key','mednist_fastai/web/__pycache__/app.cpython-311.pyc'): assert ignored(o)
    assert '.env' in (root/'.gitignore').read_text().splitlines()

def test_what_is_copied_is_enough(image):
    "The package that came of it has all that it has in the checkout"
    have = {p.relative_to(image.site).as_posix() for p in (image.site/'mednist_fastai').rglob('*') if p.is_file() and '__pycache__' not in p.parts}
    want = {o for o in image.files if o.startswith('mednist_fastai/')}
    for o in ('web/templates/base.html','web/static/page.css','web/translations/fr/LC_MESSAGES/messages.mo','migrations/versions/0001_first.py'): assert f'mednist_fastai/{o}' in have
    assert any(o.startswith('mednist_fastai/learners/') for o in have)
    assert {o for o in want-have if not o.endswith(('.pot','.gitattributes'))}==set()
    assert (image.site/'bin/mednist-web').exists() and (image.site/'bin/mednist-store').exists()

def packages(extras):
    "Every distribution that an installation with these extras brings"
    name = lambda o: re.sub('[-_.]+', '-', o).lower()
    seen,todo = set(),[('mednist-fastai',e) for e in ('',*extras)]
    while todo:
        key = todo.pop()
        if key in seen: continue
        seen.add(key)
        try: needs = metadata.requires(key[0]) or []
        except metadata.PackageNotFoundError: continue
        for r in map(Requirement, needs):
            if r.marker is None or r.marker.evaluate(dict(extra=key[1])): todo += [(name(r.name),e) for e in ('',*r.extras)]
    return {o for o,_ in seen}

def test_the_extras_are_all_that_it_imports(image):
    "What tests and notebooks need is here, too, and isn't there"
    code = '''
import json, pkgutil, sys
import mednist_fastai.web, mednist_fastai.store, mednist_fastai.search
for o in pkgutil.walk_packages(mednist_fastai.web.__path__, 'mednist_fastai.web.'): __import__(o.name)
from mednist_fastai.infer import Predictor
import alembic.command, psycopg, faiss
print(mednist_fastai.__file__); print(json.dumps(sorted({o.split('.')[0] for o in sys.modules})))'''
    out = subprocess.run([sys.executable,'-c',code], env=os.environ|dict(PYTHONPATH=str(image.site)), cwd=image.at, capture_output=True, text=True, check=True).stdout.splitlines()
    assert Path(out[0]).is_relative_to(image.site)
    of,have = metadata.packages_distributions(),packages(image.extras)
    strange = {m:of[m] for m in json.loads(out[1]) if m in of and not {re.sub('[-_.]+', '-', o).lower() for o in of[m]}&have}
    assert {m for m in strange if m not in ('_distutils_hack','_pytest','a1_coverage')}==set()

def test_an_index_of_ones_own(image):
    assert image.args==page['build']['args']==['PIP_INDEX_URL']
    out = subprocess.run([sys.executable,'-m','pip','config','list'], env=os.environ|dict(PIP_INDEX_URL='file:///srv/index'), capture_output=True, text=True, check=True).stdout
    assert ":env:.index-url='file:///srv/index'" in out

def test_no_host_is_named():
    for o in ('Dockerfile','compose.yaml','.dockerignore'): assert not re.search(r'https?://(?!127\.0\.0\.1)|\b[\w-]+\.(org|com|io|net|dev)\b', (root/o).read_text()), o

# ---------------------------------------------------------------- compose.yaml

NAME,SECRET,WORD = 'images.hospital.example','0123456789abcdef'*4,"p@ss/w:rd #'1%&x" # whatever stands in the password, no address is spoilt by it
GIVEN = dict(MEDNIST_FASTAI_WEB_SECRET=SECRET, MEDNIST_FASTAI_NAMES=NAME, MEDNIST_FASTAI_DATABASE_PASSWORD=WORD)

def values(environment, given=GIVEN):
    "The environment as compose fills it in"
    def one(m):
        name,how,rest = m.groups()
        if name in given: return given[name]
        if how==':-': return rest
        raise KeyError(f'{name} {rest}')
    return {k:re.sub(r'\$\{(\w+)(:[-?])([^}]*)\}', one, v) for k,v in environment.items()}

def section():
    "The README's section about containers"
    return re.search(r'^## In a container\n(.*?)^## ', (root/'README.md').read_text(encoding='utf-8'), re.M|re.S)[1]

def test_what_compose_says(image):
    assert set(compose)=={'services','volumes'} and set(compose['services'])=={'page','database'} and set(compose['volumes'])=={'data','database'}
    assert set(page)=={'build','restart','read_only','tmpfs','cap_drop','security_opt','stop_grace_period','depends_on','environment','ports','volumes'}
    assert set(database)=={'image','restart','security_opt','environment','healthcheck','volumes'} # no port: only the page reaches it
    assert page['build']['context']=='.' and page['read_only'] is True and page['cap_drop']==['ALL'] and page['tmpfs']==['/tmp']
    assert all(o['security_opt']==['no-new-privileges:true'] and o['restart']=='unless-stopped' for o in (page,database))
    assert page['depends_on']=={'database':{'condition':'service_healthy'}} and page['ports']==[f'127.0.0.1:{image.port}:{image.port}'] and page['volumes']==['data:/data']
    assert int(page['stop_grace_period'].rstrip('s'))>=30
    assert re.fullmatch(r'postgres:\d+-bookworm', database['image']) and database['volumes']==['database:/var/lib/postgresql/data']

def test_variables(image):
    "None is set for nothing, none is a secret that stands there, and each that is asked for is in the README"
    code = ''.join(p.read_text(encoding='utf-8') for p in (root/'mednist_fastai').rglob('*.py'))+image.cmd+' '.join(image.health)
    for o in page['environment']: assert o in code or o=='PGPASSWORD', o # which libpq reads: without it the page doesn't start, see below
    assert all(o in page['environment'] for o in re.findall(r'\$\{?(MEDNIST_\w+)', image.cmd))
    text = (root/'compose.yaml').read_text()
    assert all(o in section() for o in re.findall(r'\$\{(\w+):[-?]', text))
    for o in GIVEN:
        with pytest.raises(KeyError, match=o): values(page['environment']|database['environment'], {k:v for k,v in GIVEN.items() if k!=o})

# ---------------------------------------------------------------- running

@pytest.fixture(scope='module')
def server():
    "A PostgreSQL made as the image makes it: this user, this database, this password, and nobody without one. Its port"
    pytest.importorskip('psycopg')
    initdb,postgres = (program(o, 'usr/lib/postgresql/*/bin', 'opt/homebrew/bin') for o in ('initdb','postgres'))
    who,port,env = account('postgres'),free_port(),values(database['environment'])
    with box_for(who) as box:
        (box/'word').write_text(env['POSTGRES_PASSWORD'])
        if who: shutil.chown(box/'word', who['user'])
        subprocess.run([initdb,'-D',box/'data','-U',env['POSTGRES_USER'],'-A','scram-sha-256',f'--pwfile={box/"word"}','-E','UTF8','--no-sync'], check=True, capture_output=True, **who)
        cmd = [postgres,'-D',box/'data','-p',str(port),'-c','listen_addresses=127.0.0.1','-c',f'unix_socket_directories={box}','-c','fsync=off']
        url = sa.URL.create('postgresql+psycopg', env['POSTGRES_USER'], env['POSTGRES_PASSWORD'], '127.0.0.1', port, 'postgres')
        with running(cmd, url, box, who, signal.SIGINT): make_database(port, env['POSTGRES_DB']); yield port

def make_database(port, name):
    env = values(database['environment'])
    engine = sa.create_engine(sa.URL.create('postgresql+psycopg', env['POSTGRES_USER'], env['POSTGRES_PASSWORD'], '127.0.0.1', port, 'postgres'), isolation_level='AUTOCOMMIT')
    with engine.connect() as con: con.execute(sa.text(f'CREATE DATABASE {name}'))
    engine.dispose()

def test_the_database_is_healthy(server):
    kind,name,*words = database['healthcheck']['test']
    assert kind=='CMD' and set(database['healthcheck'])<={'test','interval','timeout','retries'}
    def ask(port): return subprocess.run([program(name, 'usr/lib/postgresql/*/bin', 'opt/homebrew/bin'),*words], env=os.environ|dict(PGPORT=str(port)), capture_output=True).returncode
    assert ask(server)==0 and ask(free_port())!=0

# as compose has it, where this system lets root do so: nothing can be written but what is under the volume, and no capability is left
CONFINED = ['unshare','-m','sh','-c','mount --bind "$0" "$0" && mount -o remount,bind,ro / && exec setpriv --reuid "$1" --regid "$1" --clear-groups --no-new-privs --bounding-set=-all "$2" "$3" "$4"']

@cache
def who(uid):
    "The user of the image, or root without a capability where Python is in a folder that only root may look into, or None: as whoever runs this"
    def can(o):
        with tempfile.TemporaryDirectory() as d: return subprocess.run([*CONFINED,d,o,'sh','-c',f'{sys.executable} -c ""'], capture_output=True).returncode==0
    return next((o for o in (uid,'0') if can(o)), None) if not os.geteuid() and shutil.which('unshare') and shutil.which('setpriv') else None

class Container:
    "The image with a volume, on a port of its own"
    def __init__(self, image, port, base='mednist', **env):
        self.image,self.box,self.port = image,Path(tempfile.mkdtemp()),free_port()
        self.box.chmod(0o755)
        self.data = self.box/'data'
        shutil.copytree(image.volume, self.data)
        env = {**values(page['environment']), **env}
        env['MEDNIST_FASTAI_STORE_URL'] = env['MEDNIST_FASTAI_STORE_URL'].replace('@database/mednist', f'@127.0.0.1:{port}/{base}')
        path = os.pathsep.join((str(image.site/'bin'),str(Path(sys.executable).parent),os.environ['PATH']))
        self.env = {k:self.here(v) for k,v in dict(image.env, **{k:v for k,v in env.items() if v is not None}, PATH=path, PYTHONPATH=str(image.site), HOME=image.home, OMP_NUM_THREADS='1').items()}
        self.who = who(str(image.uid))
        self.own(self.data)
    def own(self, *paths):
        for p in paths if self.who else (): os.chown(p, int(self.who), int(self.who))
    def here(self, o): return re.sub(r'(?<![\w.])/data\b', str(self.data), o).replace(f'--port {self.image.port}', f'--port {self.port}').replace(f'127.0.0.1:{self.image.port}', f'127.0.0.1:{self.port}')
    def popen(self, cmd):
        cmd = [*CONFINED,self.data,self.who,*cmd] if self.who else cmd
        return subprocess.Popen(cmd, env=self.env, cwd=self.data, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True)
    def run(self, cmd):
        "A command beside the page: its code and what it said"
        with self.popen(['sh','-c',self.here(cmd)]) as p: out = p.communicate(timeout=60)[0]
        return p.returncode,out
    def start(self): self.process = self.popen(['sh','-c',self.here(self.image.cmd)]); return self
    def healthy(self): return subprocess.run([self.here(o) for o in self.image.health], env=self.env, capture_output=True).returncode==0
    def wait(self):
        end = time.monotonic()+60
        while True:
            try: self.get('/health'); break
            except OSError: time.sleep(.1)
            if self.process.poll() is not None or time.monotonic()>end: self.process.kill(); pytest.fail(self.process.communicate()[0])
        return self
    def get(self, path, host=NAME): return urllib.request.urlopen(urllib.request.Request(f'http://127.0.0.1:{self.port}{path}', headers=dict(Host=host)), timeout=20)
    def stop(self):
        t = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        out = self.process.communicate(timeout=60)[0]
        return self.process.returncode,time.monotonic()-t,out
    @contextmanager
    def store(self):
        "Its store, opened from outside"
        with pytest.MonkeyPatch.context() as m:
            m.setenv('PGPASSWORD', WORD)
            with Store(self.data/'store') as s: yield s

@pytest.fixture(scope='module')
def container(image, server):
    "Makes containers; what still runs at the end is stopped"
    made = []
    def make(*args, **kw): made.append(Container(image, server, *args, **kw)); return made[-1]
    yield make
    for o in made:
        if p := getattr(o, 'process', None):
            with suppress(ProcessLookupError): os.killpg(p.pid, signal.SIGKILL) # with whatever it left behind
            p.wait()
        shutil.rmtree(o.box)

@pytest.mark.parametrize('env,said', [(dict(MEDNIST_FASTAI_WEB_SECRET=None), 'MEDNIST_FASTAI_WEB_SECRET'), (dict(MEDNIST_FASTAI_NAMES=''), 'MEDNIST_FASTAI_NAMES'),
    (dict(PGPASSWORD='wrong'), "can't be reached")])
def test_refuses_to_start(container, env, said):
    "Without a secret, a name or the database, and then nothing is made"
    c = container(**env)
    out = c.start().process.communicate(timeout=60)[0]
    assert c.process.returncode not in (0,-9) and said in out and 'Traceback' not in out and not (c.data/'store').exists() and not (c.data/'web').exists()

def test_a_weak_secret(container):
    make = container(MEDNIST_FASTAI_WEB_SECRET='changeme', MEDNIST_FASTAI_STORE_URL='') # without a database server: SQLite in the volume
    out = make.start().process.communicate(timeout=60)[0]
    assert make.process.returncode==2 and 'easy to guess' in out and not make.healthy()
    assert (make.data/'store/store.sqlite').exists()

SLIM = 'ld-linux c m dl pthread rt util resolv nss_files nss_dns nss_compat stdc++ gcc_s z ssl crypto ffi sqlite3 lzma bz2 expat uuid readline tinfo ncursesw'.split() # libraries of the base image

def foreign(pid):
    "Libraries that a process uses and that come neither with Python and its packages nor with the base image"
    have = {l.split(None, 5)[5].strip() for l in Path(f'/proc/{pid}/maps').read_text().splitlines() if '.so' in l}
    ours = Path(sys.prefix),Path(sys.base_prefix),Path(sys.executable).resolve().parent.parent
    return {o for o in have if not any(Path(o).is_relative_to(p) for p in ours) and not re.search('/lib/python3|/lib/libpython3', o.replace('/x86_64-linux-gnu', '').replace('/aarch64-linux-gnu', ''))
        and re.match(r'(?:lib)?(ld-linux|[\w+]+?)(?:-|\.so)', Path(o).name)[1] not in SLIM}

def test_first_start_second_start_and_the_commands_of_the_readme(container, server, tmp_path):
    c = container().start().wait()
    assert c.healthy() and c.get('/health').status==200 and json.load(c.get('/health'))['store'] is True and 'Sign in' in c.get('/').read().decode()
    with pytest.raises(urllib.error.HTTPError): c.get('/', host='elsewhere.example')
    if Path('/proc/self/maps').exists():
        assert b'mednist-web' in (said := Path(f'/proc/{c.process.pid}/cmdline').read_bytes()) and not said.startswith(b'sh\0') # the page, and no shell around it
        assert foreign(c.process.pid)==set()
        if c.who: assert re.search(rf'^Uid:\s+{c.who}\s+{c.who}\s', Path(f'/proc/{c.process.pid}/status').read_text(), re.M)
    assert WORD not in (c.data/'store/store.json').read_text() and c.env['TMPDIR']==str(c.data/'tmp') and (c.data/'tmp').is_dir() # where uploads wait
    with c.store() as s: digest = s.add_images([next((root/'tests').parent.glob('nbs/images/*.png'))], 'admin')[0]
    commands(c, container, tmp_path)
    code,seconds,out = c.stop()
    assert code==0 and seconds<10 and 'Traceback' not in out and WORD not in out and SECRET not in out
    assert not c.healthy()
    c.start().wait()
    with c.store() as s: assert s.find().digest.tolist()==[digest] and s.engine.dialect.name=='postgresql'
    assert c.stop()[0]==0

KNOWN = 'docker compose up', 'docker compose stop', 'docker compose build', 'docker compose down', 'git pull', 'umask 077'

def commands(c, container, tmp_path):
    "Each command of the README's section, in its order, in this container or, of a restoration, in a new one"
    c.env['MEDNIST_FASTAI_WEB_PASSWORD'] = 'six quiet rivers' # a person is asked for it
    done,lines = [],[l for b in re.findall(r'```sh\n(.*?)```', section(), re.S) for l in b.splitlines() if l.strip()]
    for line in lines:
        for cmd in (shlex.join(w) for w in split(line)):
            if m := re.fullmatch(r'docker compose exec page (.+)', cmd): code,out = c.run(unquoted(m[1]))
            elif m := re.fullmatch(r'docker compose cp page:(\S+) (\S+)', cmd): shutil.copytree(c.here(m[1]), tmp_path/m[2]); code,out = 0,''
            elif m := re.fullmatch(r'docker compose run --rm --volume \./(\S+?):(\S+?):ro page (.+)', cmd):
                make_database(c.env['MEDNIST_FASTAI_STORE_URL'].split(':')[-1].split('/')[0], 'again')
                new = container('again')
                shutil.copytree(tmp_path/m[1], new.box/'backup')
                code,out = new.run(unquoted(m[3]).replace(m[2], str(new.box/'backup')))
                with new.store() as a, c.store() as b: assert a.find().digest.tolist()==b.find().digest.tolist() and a.key==b.key and len(b.find())==1
                done.append('restored')
            elif m := re.fullmatch(r'docker compose run --rm page (.+)', cmd): code,out = c.run(unquoted(m[1])) # of a store that is new already; see the next test
            elif '.env' in line:
                code,out = subprocess.run(['sh','-c',line], cwd=tmp_path).returncode,''
                break
            else: assert cmd.startswith(KNOWN), cmd; code,out = 0,''
            done.append(cmd)
        assert code==0, f'{line}: {out}'
    env = dict(l.split('=', 1) for l in (tmp_path/'.env').read_text().splitlines())
    assert set(env)==set(GIVEN) and values(page['environment'], env)
    if shutil.which('openssl'): assert len(env['MEDNIST_FASTAI_WEB_SECRET'])==len(env['MEDNIST_FASTAI_DATABASE_PASSWORD'])==64
    assert 'restored' in done and any('--password' in o for o in done) and any('export' in o for o in done) and any('upgrade' in o for o in done)
    from mednist_fastai.web.accounts import check_password
    with c.store() as s:
        assert check_password(s, 'admin', 'six quiet rivers').role=='admin'
        assert 'reviewer' in s.frame(sa.select(store_module.users)).role.tolist()

def split(line):
    "The commands of a line, as words"
    out = [[]]
    for w in shlex.split(line, comments=True): out.append([]) if w=='&&' else out[-1].append(w)
    return [o for o in out if o]

def unquoted(cmd):
    "What runs in the container: `sh -c` takes its one word as it is"
    w = shlex.split(cmd)
    return w[2] if w[:2]==['sh','-c'] else shlex.join(w)

def test_a_new_version_finds_an_old_store(container, server, monkeypatch):
    "It says what to do, and that is enough"
    make_database(server, 'old')
    c,upgrade = container('old'),store_module._upgrade
    monkeypatch.setenv('PGPASSWORD', WORD)
    monkeypatch.setattr(store_module, '_upgrade', lambda engine, to='head': upgrade(engine, '0001'))
    monkeypatch.setattr(store_module, '_begin_users', lambda engine, admin: None)
    Store.create(c.data/'store', 'admin', c.env['MEDNIST_FASTAI_STORE_URL']).close()
    c.own(c.data/'store', *(c.data/'store').rglob('*'))
    out = c.start().process.communicate(timeout=60)[0]
    assert c.process.returncode not in (0,-9) and 'mednist-store upgrade' in out and 'after a backup' in out
    (cmd,) = re.findall(r'docker compose run --rm page (mednist-store upgrade \S+)', section())
    assert c.run(cmd)[0]==0
    assert c.start().wait().stop()[0]==0
