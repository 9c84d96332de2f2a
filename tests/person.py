"Somebody with a browser, for the tests of the page: keeps cookies, sends the form's token as a browser does"
import io, re, time, zipfile
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
