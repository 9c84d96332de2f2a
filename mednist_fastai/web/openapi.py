"What the API takes and gives, in the words of OpenAPI 3.1"
from .. import __version__
from ..sort import STATUSES
from ..store import LABEL_STATUSES

def _ref(name): return {'$ref':f'#/components/schemas/{name}'}
def _or_null(**kw): return kw | dict(type=[kw['type'],'null'])
def _object(required=(), **props): return dict(type='object', properties=props, **(dict(required=list(required)) if required else {}))
def _json(schema): return {'application/json':dict(schema=schema)}
def _errors(*codes):
    words = {'400':'The request makes no sense', '401':'No token, or one that has ended', '403':'This user may not', '404':'Not on this server', '409':'Somebody else labelled the image meanwhile',
             '413':'Too large', '422':'Not a readable image', '429':'Too many requests', '503':'Busy'}
    return {c:dict(description=words[c], content=_json(_ref('Error'))) for c in codes}
def _query(name, text, kind='string'): return {'name':name, 'in':'query', 'description':text, 'schema':dict(type=kind)}

text,number = dict(type='string'),dict(type='number')

def _schemas():
    result = _object(('name','status'), name=text, status=dict(enum=[*STATUSES]), label=_or_null(type='string', description='class; findings are joined by |'), confidence=_or_null(type='number'), second=_or_null(type='string'),
        second_confidence=_or_null(type='number'), stranger=_or_null(type='number', description='how unlike the images of training it is'), doubts=dict(type='array', items=text, description='why it should be looked at'),
        error=_or_null(type='string', description='why it was not sorted'), probabilities=_or_null(type='object', additionalProperties=number))
    label = _object(('digest',), digest=text, predicted=_or_null(type='string'), confidence=_or_null(type='number'), label=_or_null(type='string'), status=_or_null(type='string'), version=_or_null(type='integer'))
    return dict(Error=_object(('error',), error=text, mark=text), Result=result, Label=label, Neighbour=_object(digest=text, label=text, similarity=number),
        NewLabel=_object(('digest',), digest=text, label=dict(type='string', description='a class, findings joined by |, or nothing where unsure'), status=dict(enum=[*LABEL_STATUSES], default='validated'),
            expected=_or_null(type='integer', description='the version that was seen; another one is refused')))

def document(server:str)->dict:
    "The OpenAPI document of a server"
    files = _object(('files',), files=dict(type='array', items=dict(type='string', contentMediaType='application/octet-stream'), description='JPEG, PNG, TIFF, BMP, GIF, WebP, DICOM, or ZIPs of them'))
    one = _object(('file',), file=dict(type='string', contentMediaType='application/octet-stream'), k=dict(type='integer', minimum=1, maximum=100, default=10))
    def post(id, summary, body, ok, schema, *codes): return dict(operationId=id, summary=summary, requestBody=dict(required=True, content=body), responses={ok:dict(description='Done', content=_json(schema)), **_errors(*codes)})
    def many(name, **more): return _object(('results',), results=dict(type='array', items=_ref(name)), **more)
    return dict(openapi='3.1.0', info=dict(title='mednist_fastai', version=__version__, description='Research software, not a medical device. Nothing that is sent to `classify` or `similar` is kept.'),
        servers=[dict(url=server)], security=[dict(token=[])],
        components=dict(schemas=_schemas(), securitySchemes=dict(token=dict(type='http', scheme='bearer'))),
        paths={
            '/api/v1/classify':dict(post=post('classify', 'What class are these images of? In the order in which they were sent.', {'multipart/form-data':dict(schema=files)}, '200',
                many('Result', learner=_object(name=text, digest=text, task=dict(enum=['single_label','multi_label']))), '400','401','413','429','503')),
            '/api/v1/similar':dict(post=post('similar', 'Which images of the index are most like this one?', {'multipart/form-data':dict(schema=one)}, '200', many('Neighbour'), '400','401','404','413','422','429')),
            '/api/v1/labels':dict(
                get=dict(operationId='labels', summary='Images of the store, with what was said of them last.', parameters=[_query('label', 'current label'), _query('predicted', 'what the learner says'), _query('status', 'validated, corrected, unsure, withdrawn or none'),
                    _query('dataset', 'name of a data set'), _query('disagree', '1: only where people and learner differ'), _query('uncertain', '1: the least sure first'), _query('limit', 'at most so many, up to 1000', 'integer')],
                    responses={'200':dict(description='Done', content=_json(many('Label'))), **_errors('400','401','404','429')}),
                post=post('addLabel', 'Say what an image shows. For reviewers.', _json(_ref('NewLabel')), '201', _object(version=dict(type='integer')), '400','401','403','404','409','429'))})
