"The files of one person: taken in whole or not at all, sorted, shown, and handed back as one ZIP"
import io, json, math, os, re, secrets, shutil, sqlite3, stat, time, zipfile, zlib
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from ..images import _is_dicom, _utf8
from ..sort import REVIEW, SortError, folder_names, read_report, write_report
from .words import N_

CHUNK = 2**18

class LimitError(Exception): "More than the server takes; nothing of this upload was kept"
class FullError(Exception): "The disk has no room for an upload"
class GoneError(Exception): "The session was cleared or is too old"
class EarlierLearnerError(Exception): "The session was sorted by a learner that is not in use any more, and takes no more files"

@dataclass
class SortedBy:
    "The learner that sorted a session, as far as its results need it; `Store.record` takes it for a learner"
    name: str; digest: str; labels: list; task: str; thresholds: list|None
    @classmethod
    def of(cls, lf): return cls(lf.info.get('name', lf.path.name), lf.digest, lf.labels, lf.task, lf.thresholds.tolist() if lf.task=='multi_label' else None)

_SCHEMA = '''CREATE TABLE IF NOT EXISTS file(n INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL, size INT NOT NULL, dicom INT NOT NULL, status TEXT NOT NULL,
    why TEXT NOT NULL DEFAULT '', label TEXT NOT NULL DEFAULT '', confidence REAL, second TEXT NOT NULL DEFAULT '', second_confidence REAL, stranger REAL,
    doubts TEXT NOT NULL DEFAULT '', same_as INT, destination TEXT NOT NULL DEFAULT '', probs TEXT NOT NULL DEFAULT '[]');
CREATE INDEX IF NOT EXISTS by_status ON file(status); CREATE TABLE IF NOT EXISTS note(key TEXT PRIMARY KEY, value TEXT NOT NULL)'''
_SID = re.compile('[0-9a-f]{32}')

class Box:
    "A session's folder under `data/sessions`. The names that people gave their files are text in a table; on the disk files have numbers"
    def __init__(self, root, settings):
        self.root,self.settings = Path(root),settings
        self.files,self.sorted,self.part,self.views = (self.root/o for o in ('files','sorted','part','views'))
    @property
    def sid(self): return self.root.name

    @classmethod
    def create(cls, settings):
        "A new one, under a name that can't be guessed"
        self = cls(Path(settings.data)/'sessions'/secrets.token_hex(16), settings)
        for o in (self.files,self.part,self.views): o.mkdir(parents=True)
        with closing(sqlite3.connect(self.root/'files.sqlite')) as db: db.executescript(f'PRAGMA journal_mode=WAL; {_SCHEMA}')
        self.touch()
        return self

    @classmethod
    def open(cls, settings, sid):
        "The box of a session, or None; `sid` is from a signed cookie, and yet it is looked at"
        if not sid or not _SID.fullmatch(sid): return
        self = cls(Path(settings.data)/'sessions'/sid, settings)
        return self if (self.root/'files.sqlite').is_file() else None

    @contextmanager
    def db(self, write=False):
        "A connection; `write` is one transaction"
        # mode=rw: a box that was cleared meanwhile doesn't come back as an empty one
        try: con = sqlite3.connect(f'{(self.root/"files.sqlite").resolve().as_uri()}?mode=rw', uri=True, timeout=60, isolation_level=None)
        except sqlite3.OperationalError as e: raise GoneError() from e
        con.row_factory = sqlite3.Row
        with closing(con):
            if not write: yield con; return
            con.execute('BEGIN IMMEDIATE')
            try: yield con
            except BaseException: con.execute('ROLLBACK'); raise
            con.execute('COMMIT')

    def size(self):
        "Bytes of its files"
        with self.db() as db: return db.execute('SELECT ifnull(sum(size),0) FROM file').fetchone()[0]

    def touch(self): (self.root/'used').touch()
    def age(self): "Seconds since somebody used it"; return time.time()-(self.root/'used').stat().st_mtime

    def note(self, key, value=None):
        "Read a note of the session, or write it"
        with self.db(value is not None) as db:
            if value is not None: db.execute('INSERT INTO note VALUES (?,?) ON CONFLICT(key) DO UPDATE SET value=excluded.value', (key,value))
            return next((o[0] for o in db.execute('SELECT value FROM note WHERE key=?', (key,))), '')

    def learner(self):
        "Who sorted this session, as `SortedBy`; None before"
        return SortedBy(**json.loads(o)) if (o := self.note('by')) else None

    def folder(self, digest):
        "What a learner sorts into: each has a folder of its own, so that a run that was cut off is only gone on with by the learner that began it"
        return self.sorted/digest[:16]

    def forget(self):
        "All files wait again, whatever was said of them"
        with self.db(write=True) as db:
            db.execute("""UPDATE file SET status='', why='', label='', confidence=NULL, second='', second_confidence=NULL, stranger=NULL, doubts='', same_as=NULL, destination='', probs='[]'
                WHERE status IN ('sorted','review','unreadable')""")
            db.execute("DELETE FROM note WHERE key IN ('by','kept','error')")

    def recover(self):
        "Remove what a killed server was about to take in"
        shutil.rmtree(self.part)
        self.part.mkdir()
        with self.db() as db: known = {f'{o[0]:07}' for o in db.execute('SELECT n FROM file')}
        for o in self.files.iterdir():
            if o.name not in known: o.unlink()

# Taking in

def _head(path, n=4096):
    with open(path, 'rb') as f: return f.read(n)
def _is_zip(head): return head[:4] in (b'PK\3\4', b'PK\5\6')

def save_stream(stream, to, most, spare=0):
    "Write a stream to a new file; raises `LimitError` beyond `most` bytes, `FullError` before less than `spare` bytes are free"
    n = 0
    with open(to, 'xb') as f:
        while b := stream.read(CHUNK):
            n += len(b)
            if n>most: raise LimitError(N_('More bytes than a session may have.'))
            if shutil.disk_usage(to.parent).free<spare: raise FullError() # a ZIP grows, and others write, too
            f.write(b)
    return n

class _Bounded(io.FileIO):
    "A ZIP's directory is read in one piece: one that is endless is refused before it fills the memory"
    def __init__(self, path, most): super().__init__(path); self.most = most
    def read(self, n=-1):
        if (os.fstat(self.fileno()).st_size-self.tell() if n is None or n<0 else n)>self.most: raise LimitError(N_('A ZIP with too many files.'))
        return super().read(n)

def _bad_member(info, s):
    "Why a member of a ZIP isn't unpacked, or ''"
    name = info.filename.replace('\\', '/')
    if stat.S_ISLNK(info.external_attr>>16): return N_('a link in a ZIP, not followed')
    if name.startswith('/') or re.match('[A-Za-z]:', name) or '..' in PurePosixPath(name).parts: return N_('its path leads out of the ZIP')
    if info.flag_bits&1: return N_('encrypted in the ZIP')
    if info.compress_type not in (zipfile.ZIP_STORED,zipfile.ZIP_DEFLATED): return N_('compressed in a way that is not read here')
    if info.file_size>10*2**20 and info.file_size>s.max_ratio*max(1, info.compress_size): return N_('a ZIP bomb: it would grow too much when unpacked')
    return ''

def unpack(path, to, room, s):
    "The members of a ZIP as (name, file in the folder `to` or None, reason); raises `LimitError` for more files or bytes than there is room for"
    out = []
    try:
        with _Bounded(path, max(2**17, 1000*s.max_files)) as f, zipfile.ZipFile(f) as z:
            members = [o for o in z.infolist() if not o.is_dir()]
            if len(members)>s.max_files: raise LimitError(N_('A ZIP with too many files.'))
            for info in members:
                if why := _bad_member(info, s): out.append((info.filename, None, why)); continue
                at = to/secrets.token_hex(8)
                try:
                    with z.open(info) as m: room -= save_stream(m, at, room, s.spare)
                except (zipfile.BadZipFile,zlib.error,EOFError,NotImplementedError,RuntimeError,ValueError): out.append((info.filename, None, N_('damaged in the ZIP')))
                else: out.append((info.filename, at, N_('a ZIP in a ZIP is not opened') if _is_zip(_head(at, 4)) else ''))
    except (zipfile.BadZipFile,ValueError,NotImplementedError): return [('', None, N_('a damaged ZIP'))]
    return out or [('', None, N_('an empty ZIP'))]

def take(box:Box, uploads):
    "Take in (name, stream) pairs, ZIPs unpacked; the number of files. All of them or, with a `LimitError`, none"
    s,got,work = box.settings,[],box.part/secrets.token_hex(8)
    used = box.size()
    try: work.mkdir()
    except FileNotFoundError as e: raise GoneError() from e
    try:
        for name,stream in uploads:
            at = work/secrets.token_hex(8)
            used += save_stream(stream, at, s.max_bytes-used, s.spare)
            if not _is_zip(_head(at, 4)): got.append((name, at, '')); continue
            members = unpack(at, work, s.max_bytes-used, s)
            used += sum(o.stat().st_size for _,o,_ in members if o)
            got += [(f'{name}/{m}' if m else name, None if why else o, why) for m,o,why in members]
            at.unlink()
        _enter(box, got)
    finally: shutil.rmtree(work, ignore_errors=True)
    return len(got)

def _name(name):
    "What is shown of a name: text, and not endless"
    name = _utf8(name or '').replace('\0', '') or '?'
    return name if len(name)<=1024 else f'…{name[-1023:]}'

def _enter(box, got):
    "Rows and files appear together: a crash between the two leaves a file without a row, which `recover` removes"
    with box.db(write=True) as db:
        (files,) = db.execute('SELECT count(*) FROM file').fetchone()
        if files+len(got)>box.settings.max_files: raise LimitError(N_('More files than a session may have.'))
        for name,at,why in got:
            row = _name(name),at.stat().st_size if at else 0,int(bool(at) and _is_dicom(_head(at))),'skipped' if why else '',why
            n = db.execute('INSERT INTO file(name,size,dicom,status,why) VALUES (?,?,?,?,?)', row).lastrowid
            if at: os.replace(at, box.files/f'{n:07}')

# Results

def _real(x): return None if x is None or x!=x else float(x)

def absorb(box:Box, df, lf):
    "Write what the report of `classify_folder` says into the table, and whose words they are"
    labels,root = lf.labels,box.folder(lf.digest)
    def n(path): return int(os.path.basename(path)) if path else None
    probs = df[[f'p_{o}' for o in labels]].to_numpy() if len(df) else []
    rows = [(r.status, r.error, r.label, _real(r.confidence), r.second, _real(r.second_confidence), _real(r.stranger), r.doubts, n(r.same_as),
             os.path.relpath(r.destination, root).replace(os.sep, '/') if r.destination else '', json.dumps([_real(o) for o in p] if r.label else []), n(r.path)) for r,p in zip(df.itertuples(), probs)]
    with box.db(write=True) as db:
        db.executemany('''UPDATE file SET status=?, why=?, label=?, confidence=?, second=?, second_confidence=?, stranger=?, doubts=?, same_as=?, destination=?, probs=?
            WHERE n=? AND status='' ''', rows)
        db.execute("INSERT INTO note VALUES ('by',?) ON CONFLICT(key) DO UPDATE SET value=excluded.value", (json.dumps(asdict(SortedBy.of(lf))),))

def waiting(box:Box)->int:
    "Files that have no result yet"
    with box.db() as db: return db.execute("SELECT count(*) FROM file WHERE status=''").fetchone()[0]

def newest(box:Box):
    "Number of the last file that has no result yet, or None"
    with box.db() as db: return db.execute("SELECT max(n) FROM file WHERE status=''").fetchone()[0]

def give_up(box:Box, last:int):
    "No file up to `last` stays without an answer after a run that saw them: those that its report doesn't know are not there"
    with box.db(write=True) as db: db.execute("UPDATE file SET status='skipped', why=? WHERE status='' AND n<=?", (N_('gone from the disk of the server'),last))

def counts(box:Box)->dict:
    "Files by status; by label under 'labels'; '' are those that wait"
    with box.db() as db:
        by = dict(db.execute('SELECT status,count(*) FROM file GROUP BY status').fetchall())
        labels = db.execute("SELECT label,count(*) FROM file WHERE status='sorted' GROUP BY label ORDER BY label").fetchall()
    return dict(by, all=sum(by.values()), labels=[tuple(o) for o in labels])

def rows(box:Box, status=None, label=None, page=1, size=60):
    "A page of the table, and how many pages there are: what needs a look first"
    where,args = ["status!=''"],[]
    if status: where.append('status=?'); args.append(status)
    if label is not None: where.append('label=?'); args.append(label)
    where = ' AND '.join(where)
    order = "CASE status WHEN 'unreadable' THEN 0 WHEN 'skipped' THEN 0 WHEN 'review' THEN 1 ELSE 2 END, n"
    with box.db() as db:
        (n,) = db.execute(f'SELECT count(*) FROM file WHERE {where}', args).fetchone()
        pages = max(1, math.ceil(n/size))
        page = min(max(1, page), pages)
        return db.execute(f'SELECT * FROM file WHERE {where} ORDER BY {order} LIMIT ? OFFSET ?', (*args, size, (page-1)*size)).fetchall(),page,pages,n

def row(box:Box, n:int):
    "A file's row, or None"
    with box.db() as db: return db.execute('SELECT * FROM file WHERE n=?', (n,)).fetchone()

def neighbours(box:Box, n:int):
    "The readable files before and after one, by number"
    sql = "SELECT {0}(n) FROM file WHERE n{1}? AND status IN ('sorted','review')"
    with box.db() as db: return tuple(db.execute(sql.format(*o), (n,)).fetchone()[0] for o in (('max','<'),('min','>')))

# Handing back

def _entries(box):
    "n -> name in the ZIP: folder of the class, then the person's own name made safe, and different from all others there"
    with box.db() as db: placed = db.execute("SELECT n,name,destination FROM file WHERE destination!='' ORDER BY n").fetchall()
    last = {}
    out,taken = {},set()
    for o in placed:
        folder,base = o['destination'].split('/')[0],PurePosixPath(o['name'].replace('\\', '/')).name or '?'
        try: safe = folder_names([base])[base]
        except SortError: safe = folder_names([base[-40:]])[base[-40:]]
        stem,ext = os.path.splitext(safe)
        key,res = f'{folder}/{safe}'.casefold(),f'{folder}/{safe}'
        while res.casefold() in taken:
            last[key] = last.get(key, 1)+1
            res = f'{folder}/{stem}-{last[key]}{ext}'
        taken.add(res.casefold())
        out[o['n']] = res
    return out

def _report_rows(box, labels, entries, multi):
    with box.db() as db:
        names = dict(db.execute('SELECT n,name FROM file').fetchall())
        for r in db.execute("SELECT * FROM file WHERE status!='' ORDER BY n"):
            probs = json.loads(r['probs']) or ['']*len(labels)
            found = r['label'].split('|')
            said = ([int(o in found) for o in labels] if r['label'] else ['']*len(labels)) if multi else []
            yield (r['name'], r['label'], *('' if r[k] is None else r[k] for k in ('confidence','second','second_confidence','stranger','doubts','status')),
                   entries.get(r['n'], ''), r['why'], names.get(r['same_as'], ''), *probs, *said)

def write_zip(box:Box, labels, multi, to):
    "Sorted folders and `report.csv` in one file; names are those that were given, made safe"
    entries,report = _entries(box),box.part/f'{secrets.token_hex(8)}.csv'
    try:
        write_report(report, labels, _report_rows(box, labels, entries, multi), decisions=multi)
        with zipfile.ZipFile(to, 'w', zipfile.ZIP_STORED) as z: # images are packed already
            z.write(report, 'report.csv', zipfile.ZIP_DEFLATED)
            for n,name in entries.items(): z.write(box.files/f'{n:07}', name)
    finally: report.unlink(missing_ok=True)
