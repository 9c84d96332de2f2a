"""Somebody with a browser, for the tests of the page: keeps cookies, sends the form's token as a browser does.

`Person` asks the application in this process; `Browser` asks a `Server`, a process of its own, over the wire."""
import csv, http.cookiejar, io, re, signal, socket, subprocess, sys, threading, time, urllib.error, urllib.parse, urllib.request, zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
import numpy as np
from PIL import Image

def picture(seed, size=48, kind='PNG'):
    "Bytes of a small image; each seed gives other bytes"
    out = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size,size), dtype=np.uint8)).save(out, kind)
    return out.getvalue()

def zipped(**files):
    out = io.BytesIO()
    with zipfile.ZipFile(out, 'w', zipfile.ZIP_DEFLATED) as z:
        for k,v in files.items(): z.writestr(k, v)
    return out.getvalue()

class Person:
    def __init__(self, app, **kw): self.client,self.base = app.test_client(),kw
    def get(self, path, **kw): return self.client.get(path, **{**self.base, **kw})
    def token(self): return re.search(r'name="csrf_token" value="([^"]+)"', self.get('/').text)[1]
    def post(self, path, data=None, files=None, **kw):
        data = dict(data or {}, csrf_token=self.token())
        if files is not None: data['files'] = [(io.BytesIO(b), n) for n,b in files]
        return self.client.post(path, data=data, content_type='multipart/form-data' if files is not None else None, **{**self.base, **kw})
    def upload(self, *files, **kw): return self.post('/upload', files=files, **kw)
    def wait(self, seconds=60):
        "The page of the result, once there is one"
        end = time.monotonic()+seconds
        while time.monotonic()<end:
            r = self.get('/progress')
            if 'HX-Retarget' in r.headers: return r.text
            time.sleep(.05)
        raise AssertionError('still being sorted')
    def sort(self, *files):
        assert (r := self.upload(*files)).status_code==302, r.text
        return self.wait()
    def zip(self): return zipfile.ZipFile(io.BytesIO(self.get('/download').data))
    def sign_in(self, name, password, **kw): return self.post('/sign-in', dict(name=name, password=password, **kw))

# A real server, in a process of its own

def free_port():
    with socket.socket() as s: s.bind(('127.0.0.1', 0)); return s.getsockname()[1]

class Server:
    "`mednist-web` with a folder; further arguments are the command's"
    def __init__(self, data, **kw):
        self.port = kw.pop('port', None) or free_port()
        args = ', '.join(f'{k}={v!r}' for k,v in dict(data=str(data), port=self.port, **kw).items())
        self.process = subprocess.Popen([sys.executable, '-c', f'from mednist_fastai.web.serve import mednist_web; mednist_web({args})'], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        threading.Thread(target=lambda: setattr(self, 'said', self.process.stderr.read()), daemon=True).start()
        self.url = f'http://127.0.0.1:{self.port}'
        end = time.monotonic()+60
        while time.monotonic()<end:
            try: urllib.request.urlopen(self.url+'/health', timeout=5).read(); return
            except OSError: time.sleep(.1)
        raise AssertionError('the server does not answer')
    def stop(self, how=signal.SIGTERM):
        self.process.send_signal(how)
        return self.process.wait(30)
    def memory(self, what='VmHWM'): "The most it ever had, bytes; with 'VmRSS' what it has now"; return int(re.search(rf'{what}:\s+(\d+)', Path(f'/proc/{self.process.pid}/status').read_text())[1])*1024

class _Stay(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_): return None

class Browser:
    "Cookies and forms over the wire"
    def __init__(self, url):
        self.url,self.jar = url,http.cookiejar.CookieJar()
        cookies = urllib.request.HTTPCookieProcessor(self.jar)
        self.opener,self.stay = urllib.request.build_opener(cookies),urllib.request.build_opener(cookies, _Stay)
    def get(self, path): return self.opener.open(self.url+path, timeout=120)
    def token(self): return re.search(r'name="csrf_token" value="([^"]+)"', self.get('/').read().decode())[1]
    def post(self, path, **data):
        "Status and text of the answer to a form; redirects are not followed"
        r = urllib.request.Request(self.url+path, urllib.parse.urlencode(data).encode())
        try:
            with self.stay.open(r, timeout=120) as f: return f.status,f.read().decode()
        except urllib.error.HTTPError as e: return e.code,e.read().decode()
    def body(self, files):
        parts = [f'--b\r\nContent-Disposition: form-data; name="csrf_token"\r\n\r\n{self.token()}\r\n'.encode()]
        parts += [f'--b\r\nContent-Disposition: form-data; name="files"; filename="{n}"\r\nContent-Type: image/png\r\n\r\n'.encode()+d+b'\r\n' for n,d in files]
        return b''.join(parts)+b'--b--\r\n'
    def upload(self, files):
        r = urllib.request.Request(self.url+'/upload', self.body(files), {'Content-Type':'multipart/form-data; boundary=b', 'HX-Request':'true'})
        return self.opener.open(r, timeout=120).read()
    def wait(self, seconds=120):
        end = time.monotonic()+seconds
        while time.monotonic()<end:
            r = self.get('/progress')
            if r.headers.get('HX-Retarget'): return r.read().decode()
            time.sleep(.2)
        raise AssertionError('still being sorted')
    def zip(self): return zipfile.ZipFile(io.BytesIO(self.get('/download').read()))

def crowd(server, people=20, images=50, seconds=600):
    "Everybody uploads at the same moment, 25 files a request, and takes the result home: seconds from upload to result, who got something else than was sent, what went wrong"
    sent,gate = [{f'p{k}-{i}.png':picture(1000*k+i, 256) for i in range(images)} for k in range(people)],threading.Barrier(people)
    took,mixed,errors,idle = [],[],[],server.memory('VmRSS')
    def one(k):
        b,files = Browser(server.url),[*sent[k].items()]
        gate.wait(60)
        start = time.monotonic()
        for i in range(0, images, 25): b.upload(files[i:i+25])
        html = b.wait(seconds)
        took.append(time.monotonic()-start)
        z = b.zip()
        rows = [(r['path'],r['destination']) for r in csv.DictReader(z.read('report.csv').decode().splitlines())]
        if {n:z.read(at) for n,at in rows}!=sent[k] or not len(rows)==len(z.namelist())-1==images or f'{images} files' not in html: mixed.append(k)
    with ThreadPoolExecutor(people) as pool: errors = [repr(e) for o in [pool.submit(one, k) for k in range(people)] if (e := o.exception())]
    return dict(seconds=sorted(took), mixed_up=mixed, errors=errors, grew=server.memory()-idle)
