"""Trees of DICOM files: sorted like any others, and nothing from a header gets out"""
import json, os, shutil, subprocess, sys
from pathlib import Path
import pytest
from mednist_fastai import sort
from mednist_fastai.sort import classify_folder
from test_sort import no_debris, same_frame, tree

pydicom = pytest.importorskip('pydicom')
pytestmark = pytest.mark.filterwarnings('ignore::UserWarning') # of pydicom, when the test itself reads odd headers
FILES = Path(pydicom.__file__).parent/'data'/'test_files'

@pytest.fixture(scope='module')
def tree_of(tmp_path_factory):
    "All files that come with pydicom as a medium would hold them: nested series with files IM1, IM2, ... without extension, indexes called DICOMDIR among them; path -> original"
    top,res = tmp_path_factory.mktemp('dicom')/'in',{}
    for i,f in enumerate(sorted(o for o in FILES.rglob('*') if o.is_file())):
        to = top/f'PA{i%3}'/f'ST{i%2}'/f'SE{i%7}'/('DICOMDIR' if 'DICOMDIR' in f.name else f'IM{i//42}')
        while to.exists(): to = to.parent/'deeper'/to.name
        to.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(f, to)
        res[str(to)] = f
    return top,res

@pytest.fixture(scope='module')
def result(tree_of, tmp_path_factory):
    top,files = tree_of
    (top/'PA0/again').symlink_to(top/'PA1')
    dst = tmp_path_factory.mktemp('sorted')/'dst'
    return top,files,dst,classify_folder(top, dst, progress=False)

def test_every_file_is_accounted_for(result):
    top,files,dst,df = result
    assert len(df)==len(files)+1 and df.path.is_unique and set(df.path)=={*files, str(top/'PA0/again')}
    assert set(df.status)=={'sorted','review','unreadable','skipped'} and df.path[df.status=='skipped'].tolist()==[str(top/'PA0/again')]
    for o in df.itertuples():
        if o.status in ('sorted','review'): assert Path(o.destination).read_bytes()==Path(o.path).read_bytes() and not o.error
        else: assert o.error and not o.destination
    placed = [p for p in dst.glob('*/*') if p.is_file() and p.parent.name!=sort.STATE]
    assert sorted(map(str, placed))==sorted(df.destination[df.destination!=''])
    no_debris(dst)
    same_frame(classify_folder(top, dst, progress=False), df)

def test_pictures_are_sorted_and_the_rest_is_not(result):
    "The ones that pydicom's own list names with pixels; plans, reports, waveforms and indexes hold none"
    _,files,_,df = result
    status = {files[o.path].name:(o.status,o.error) for o in df.itertuples() if o.path in files}
    for o in 'CT_small.dcm','MR_small.dcm','MR_small_RLE.dcm','MR_small_jp2klossless.dcm','MR_small_jpeg_ls_lossless.dcm','JPEG2000.dcm','JPGExtended.dcm','SC_rgb.dcm','rtdose.dcm','examples_palette.dcm', \
             'examples_ybr_color.dcm','ExplVR_BigEnd.dcm','693_J2KI.dcm','SC_rgb_rle_32bit_2frame.dcm':
        if o in status: assert status[o][0] in ('sorted','review'), (o, status[o]) # some are in pydicom's other package of data
    for o in 'rtplan.dcm','rtstruct.dcm','test-SR.dcm','reportsi.dcm','waveform_ecg.dcm','README.txt','rtplan_truncated.dcm','DICOMDIR':
        assert status[o][0]=='unreadable' and status[o][1], (o, status[o])

def test_extensionless_names_that_clash(result):
    _,_,_,df = result
    names = df[df.destination!=''].assign(name=lambda d: d.destination.map(os.path.basename))
    assert names.name.str.fullmatch(r'(IM\d+|DICOMDIR)(-\d+)?').all() and names.name.str.contains('-').any()
    for _,o in names.groupby(names.destination.map(os.path.dirname)): assert o.name.str.lower().is_unique

def test_nothing_is_said_on_the_way(tree_of, tmp_path):
    "pydicom warns of odd headers, with their values; a command passes none of that on"
    p = subprocess.run([Path(sys.executable).parent/'mednist-sort', tree_of[0], tmp_path/'dst', '--quiet'], capture_output=True, text=True)
    assert (p.returncode,p.stdout,p.stderr)==(0,'','')

IDENTIFYING = {'PN','DA','DT','UI','AS'}
def header_values(f):
    "Values of a header that tell of somebody or of a time: names, numbers, dates, identifiers, places; long enough not to occur by chance"
    try: ds = pydicom.dcmread(f, force=True)
    except Exception: return set() # not DICOM
    out = set()
    def look(_, e):
        telling = e.VR in IDENTIFYING or (e.tag.group in (0x8,0x10,0x20,0x32,0x38,0x40) and e.VR in ('LO','SH','LT','ST','UT'))
        if not telling or e.keyword.endswith('ClassUID') or e.keyword in ('TransferSyntaxUID','Modality'): return
        for v in (e.value if isinstance(e.value, (list, pydicom.multival.MultiValue)) else [e.value]): out.add(str(v).strip())
    try: ds.walk(look)
    except Exception: pass # a damaged header: what could be read of it counts
    return {o for o in out if len(o)>=5}

def test_no_header_value_gets_out(result):
    top,files,dst,df = result
    rows = [json.loads(o) for o in (dst/sort.STATE/'journal.jsonl').read_text(encoding='utf-8').splitlines()[1:]]
    told = {str(o) for d in rows for o in d.values() if isinstance(o, str)} | {o for c in ('path','label','destination','error') for o in df[c]}
    told |= {p.relative_to(dst).as_posix() for p in dst.rglob('*')}
    text,seen = '\n'.join(o.replace(str(top), '').replace(str(dst), '') for o in told),0 # less what the caller named
    for f in set(files.values()):
        values = header_values(f)
        seen += len(values)
        assert not [o for o in values if o in text], (f.name, [o for o in values if o in text])
    assert seen>200

def test_moved_series_keep_their_bytes(tree_of, tmp_path):
    top,files = tree_of
    some = {p:f for p,f in files.items() if '/PA1/' in p}
    for p in some:
        to = tmp_path/'in'/os.path.relpath(p, top)
        to.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(p, to)
    before = sorted(v[0] for v in tree(tmp_path/'in').values())
    df = classify_folder(tmp_path/'in', tmp_path/'dst', move=True, progress=False)
    assert len(df)==len(some) and sorted(v[0] for v in (tree(tmp_path/'in')|{f'dst/{k}':v for k,v in tree(tmp_path/'dst').items() if k!='report.csv'}).values())==before

def test_another_window_is_another_run(tmp_path):
    "A window changes what the learner sees; one folder has one"
    (tmp_path/'in').mkdir()
    shutil.copyfile(FILES/'CT_small.dcm', tmp_path/'in/IM1')
    a = classify_folder(tmp_path/'in', tmp_path/'a', window='lung', progress=False)
    b = classify_folder(tmp_path/'in', tmp_path/'b', window=(40,400), frame=0, progress=False)
    assert (a.destination!='').all() and (b.destination!='').all() and (a.filter(like='p_').iloc[0].tolist()!=b.filter(like='p_').iloc[0].tolist())
    with pytest.raises(sort.SortError, match='window=lung'): classify_folder(tmp_path/'in', tmp_path/'a', progress=False)
    same_frame(classify_folder(tmp_path/'in', tmp_path/'b', window=(40,400), frame=0, progress=False), b)
