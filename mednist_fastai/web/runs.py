"Sorting in the background: a few sessions at once, the others wait their turn"
import logging, os, secrets, shutil, threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from filelock import FileLock, Timeout
from ..learner import LearnerError, open_learner
from ..infer import Predictor
from ..sort import SortError, classify_folder
from .batches import Batches, Cancelled, Person
from .settings import WebError
from .box import Box, GoneError, absorb, give_up, newest, waiting

log = logging.getLogger('mednist_fastai.web')

class Run:
    "The sorting of one session"
    def __init__(self, learner): self.learner,self.stop,self.done,self.future,self.doomed = learner,threading.Event(),0,None,False
    def count(self): self.done += 1

def _alone(settings):
    "Two servers in one folder would take each other's sessions for left-overs"
    lock = FileLock(Path(settings.data)/'.lock', timeout=0)
    try: lock.acquire()
    except Timeout: raise WebError(f'another server works in {settings.data}; stop it, or give this one another --data') from None
    return lock

class Runs:
    "Opens the network once, and runs `classify_folder` on the boxes of sessions, at most `settings.runs` at once"
    def __init__(self, settings):
        self.settings,self.lock,self.active = settings,threading.Lock(),{}
        self.alone = _alone(settings)
        self.pool = ThreadPoolExecutor(settings.runs, 'run')
        self.sessions,self.trash = (Path(settings.data)/o for o in ('sessions','trash'))
        for o in (self.sessions,self.trash): o.mkdir(parents=True, exist_ok=True)
        self.learner = open_learner(settings.learner)
        self.batches = Batches(Predictor(self.learner, settings.device))
        self.total = 0 # images sorted since the start, for the metrics
        self.recover()

    def reopen(self):
        "Open the learner again where a home has another current one; sessions that are being sorted finish with theirs"
        if Path(open_learner(self.settings.learner, verify=False).path)==Path(self.learner.path): return
        with self.lock:
            old,self.learner = self.batches,open_learner(self.settings.learner)
            self.batches = Batches(Predictor(self.learner, self.settings.device))
            runs = list(self.active.values())
        def end():
            for o in runs:
                with suppress(Exception): o.future.result() # what went wrong there is told there
            old.close()
        threading.Thread(target=end, daemon=True).start()

    def recover(self):
        "After a crash: nothing half taken in stays, and what was taken in is sorted"
        for o in self.trash.iterdir(): shutil.rmtree(o, ignore_errors=True)
        for o in self.sessions.iterdir():
            box = Box.open(self.settings, o.name)
            if box is None: self._throw(o); continue # killed while it was made
            box.recover()
            if box.note('kept')=='working': box.note('kept', '') # it is asked for once more; what is in the store isn't kept twice
            if waiting(box): self.start(box)

    def learner_of(self, digest):
        "The learner with this digest: the one in use, or a version of the home; None where it is gone"
        if digest==self.learner.digest: return self.learner
        for home in (self.settings.home,self.settings.learner):
            for o in Path(home).glob(f'versions/*-{digest[:8]}') if isinstance(home, (str,Path)) else ():
                with suppress(LearnerError): # damaged: as good as gone
                    if (lf := open_learner(o)).digest==digest: return lf

    def earlier(self, box):
        "Who sorted a session, where that is another learner than the one in use; one that is being sorted is finished by the learner that began"
        by = box.learner()
        return by if by and by.digest!=self.learner.digest and box.sid not in self.active else None

    def again(self, box):
        "Have everything in a box sorted once more, by the learner in use now"
        old = None
        with self.lock, suppress(FileNotFoundError):
            if box.sid not in self.active: box.forget(); old = self._aside(box.sorted)
        run = self.start(box)
        if old: shutil.rmtree(old, ignore_errors=True)
        return run

    def start(self, box):
        "Have the new files of a box sorted; the run that does it, or None: two learners don't sort one session"
        with self.lock:
            if run := self.active.get(box.sid): return run # it looks again before it ends
            if self.earlier(box): return
            run = self.active[box.sid] = Run(self.learner)
            run.future = self.pool.submit(self._work, box, run, self.batches)
        return run

    def _work(self, box, run, batches):
        try:
            box.note('error', '')
            while not run.stop.is_set():
                if last := newest(box):
                    self._sort(box, run, batches)
                    give_up(box, last) # those that came while it ran have the next turn
                with self.lock: # between this look and the end nobody can add a file unseen: `start` waits for the lock
                    if not waiting(box) or run.stop.is_set(): self.active.pop(box.sid, None); break
        except (Cancelled,GoneError): pass
        except SortError as e: self._failed(box, str(e).replace(f'{box.root.absolute()}{os.sep}', '').replace(f'{box.root}{os.sep}', '')) # where the server keeps it is nobody's business
        except Exception: # the thread's last line: told to the person without its details, and to the log with them
            log.exception('sorting failed')
            self._failed(box, '')
        finally:
            with self.lock: # by now another run may have begun for files that came later
                if self.active.get(box.sid) is run: del self.active[box.sid]
            if run.doomed: self._throw(box.root)

    def _sort(self, box, run, batches):
        run.done,lf = 0,batches.predictor.learner
        absorb(box, classify_folder(box.files, box.folder(lf.digest), Person(batches, run.stop, run.count), progress=False), lf)
        self.total += run.done

    def _failed(self, box, why):
        with suppress(GoneError): box.note('error', why or 'internal')

    def clear(self, box):
        "Remove a box and everything in it, at once or as soon as its run has stopped"
        with self.lock:
            if run := self.active.get(box.sid): run.doomed = True; run.stop.set(); return
        self._throw(box.root)

    def _aside(self, root):
        "Gone at one moment, whatever it takes to delete; where it is now"
        to = self.trash/f'{root.name}-{secrets.token_hex(4)}'
        os.replace(root, to)
        return to

    def _throw(self, root):
        with suppress(FileNotFoundError): shutil.rmtree(self._aside(root), ignore_errors=True)

    def sweep(self):
        "Remove sessions that nobody used for `settings.hours`"
        n = 0
        for o in self.sessions.iterdir():
            box = Box.open(self.settings, o.name)
            if box is None or o.name in self.active: continue
            with suppress(FileNotFoundError):
                if box.age()>self.settings.hours*3600: self.clear(box); n += 1
        return n

    def close(self):
        "Stop; what isn't sorted yet is when the server starts again"
        for o in list(self.active.values()): o.stop.set()
        self.batches.close()
        self.pool.shutdown(wait=True, cancel_futures=True)
        self.alone.release()
