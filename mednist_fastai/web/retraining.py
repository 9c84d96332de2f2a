"A retraining, asked for on the page and done in a process of its own"
import logging, subprocess, sys, threading, time
from pathlib import Path
from ..learner import HOME

log = logging.getLogger('mednist_fastai.web')

_RUN = '''
import sys
from mednist_fastai.cli import mednist_retrain
verb,home,store,by,path = sys.argv[1:]
if verb=='retrain': mednist_retrain(home, store=store, by=by)
elif verb=='rollback': mednist_retrain(home, rollback=True, by=by)
else:
    from mednist_fastai.retrain import promote
    print('promoted:', promote(home, path, by=by))
'''

class Retrainings:
    "At most one process at a time; what it printed and how it ended stays in `data/retraining`"
    def __init__(self, st):
        self.st,self.lock,self.process,self.waiting = st,threading.Lock(),None,None
        self.folder = Path(st.settings.data)/'retraining'
        self.folder.mkdir(exist_ok=True)
    @property
    def home(self): return self.st.settings.home

    def running(self): "Until its verdict is written down"; return self.waiting is not None and self.waiting.is_alive()

    def start(self, verb, by, path=''):
        "Begin; False where one is going on"
        with self.lock:
            if self.running(): return False
            said = self.folder/f'{time.strftime("%Y%m%dT%H%M%S", time.gmtime())}-{verb}.log'
            with open(said, 'ab') as f:
                self.process = subprocess.Popen([sys.executable, '-W', 'ignore', '-c', _RUN, verb, str(self.home), str(self.st.settings.store), by, str(path)], stdout=f, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
            self.waiting = threading.Thread(target=self._wait, args=(self.process,said), daemon=True)
            self.waiting.start()
        return True

    def _wait(self, process, said):
        code = process.wait()
        try: self.st.runs.reopen() # what is current now sorts from now on, and only then is it told so
        except Exception: # the old one goes on
            log.exception('the current learner could not be opened')
            code = 1
            with open(said, 'a', encoding='utf-8') as f: f.write('The server could not open the learner that is current now; its log says why.\n')
        said.with_suffix('.code').write_text(str(code))

    def close(self):
        "Nobody would see the verdict: a home survives that at any moment"
        if self.process and self.process.poll() is None: self.process.terminate(); self.process.wait()

    def last(self):
        "What was printed last and how it ended: text, 'running', 'promoted', 'refused', 'failed' or 'done'"
        logs = sorted(self.folder.glob('*.log'))
        if not logs: return '',''
        text = logs[-1].read_text(encoding='utf-8', errors='replace')[-6000:]
        try: code = int(logs[-1].with_suffix('.code').read_text())
        except FileNotFoundError: return text,'running' if self.running() else 'failed' # the server was stopped meanwhile
        return text,{0:'promoted' if logs[-1].stem.endswith('retrain') else 'done', 3:'refused'}.get(code, 'failed')

    def refused(self):
        "Learners that the gate refused, the last first"
        if not self.home: return []
        return sorted((o.name for o in (Path(self.home)/'refused').glob('*') if (o/'config.json').is_file()), reverse=True)

    def history(self):
        "Steps of the home, the last first"
        import json
        at = self.home and Path(self.home)/HOME
        return json.loads(at.read_text(encoding='utf-8'))['history'][::-1] if at and at.is_file() else []
