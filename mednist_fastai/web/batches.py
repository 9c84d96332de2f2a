"One network for everybody: images of all requests go through it in common batches"
import os, threading
from collections import deque
from concurrent.futures import Future
from ..images import load_image
from ..infer import Predictor

class Cancelled(Exception): "The person left, so nobody waits for these images any more"

class _Item:
    "An image on its way: what stands for its path in the common batch"
    __slots__ = 'path','load','told'
    def __init__(self, path, load): self.path,self.load,self.told = path,load or load_image,Future()
    def __fspath__(self): return os.fspath(self.path)

def _load(item, *args, **kw): return item.load(item.path, *args, **kw)

class Batches:
    """A thread that owns the `Predictor`. It takes what waits, one image of each person in turn, so that somebody with two thousand
    images doesn't make another with three wait; while it computes, the next batch fills. A batch is never waited for: one image alone goes at once."""
    def __init__(self, predictor:Predictor):
        self.predictor,self.asking,self.more,self.open = predictor,deque(),threading.Condition(),True
        self.sizes = [] # of the last batches, for the metrics
        self.thread = threading.Thread(target=self._work, name='batches', daemon=True)
        self.thread.start()

    def put(self, queue, item):
        "Add an image to the queue of a `Person`"
        with self.more:
            if not self.open: raise Cancelled('the server is stopping')
            if not queue: self.asking.append(queue)
            queue.append(item)
            self.more.notify()

    def _take(self, most):
        with self.more:
            while self.open and not self.asking: self.more.wait()
            out = []
            while self.asking and len(out)<most:
                q = self.asking.popleft()
                out.append(q.popleft())
                if q: self.asking.append(q)
            return out

    def _work(self):
        most = 2*self.predictor.batch_size # two batches: one is decoded while the other is in the network
        while items := self._take(most):
            self.sizes = [*self.sizes[-99:], len(items)]
            try:
                for item,o in zip(items, self.predictor.predict(items, _load)): item.told.set_result(o._replace(path=item.path))
            except Exception as e: # the engine's own failure: it is raised where the images are waited for, and the thread goes on
                for item in items:
                    if not item.told.done(): item.told.set_exception(e)

    def close(self):
        "Stop; who still waits gets `Cancelled`"
        with self.more:
            self.open = False
            self.more.notify()
        self.thread.join(timeout=60)
        with self.more:
            for q in self.asking:
                for item in q: item.told.set_exception(Cancelled('the server is stopping'))

class Person(Predictor):
    "What `classify_folder` gets: a `Predictor` whose images share batches with those of others, and which counts them"
    def __init__(self, batches:Batches, stop:threading.Event=None, counted=None):
        p = batches.predictor
        self.__dict__.update(p.__dict__) # learner, engine, strangers, window, frame, batch_size, workers: all of them are shared
        self.batches,self.stop,self.counted = batches,stop or threading.Event(),counted

    def predict(self, paths, load=None):
        "As `Predictor.predict`: in order, an unreadable file gives a `Prediction` with its `error`; raises `Cancelled`"
        paths,queue,flight = iter(paths),deque(),deque()
        def fill():
            while len(flight)<2*self.batch_size and (p := next(paths, None)) is not None:
                item = _Item(p, load)
                flight.append(item)
                self.batches.put(queue, item)
        fill()
        while flight:
            o = flight.popleft().told.result()
            if self.stop.is_set(): raise Cancelled()
            if self.counted: self.counted()
            fill()
            yield o
