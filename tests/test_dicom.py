"DICOM in `images`: exact pixels on pydicom's own files, every step by itself, and no header value anywhere"
import io, logging, os, random, struct, subprocess, sys, threading, traceback, warnings, zlib
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path
import imagecodecs, numpy as np, pydicom, pytest
from PIL import Image
from pydicom import uid
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.pixels import apply_windowing, pixel_array
from mednist_fastai import images
from mednist_fastai.images import (WINDOWS, ImageError, ImageTooLargeError, NotAnImageError, TruncatedImageError, UnsupportedImageError,
    load_image, open_image)

DATA = Path(pydicom.__file__).parent/'data' # what lies in the wheel; pydicom's own functions for test data may download
FILES = {p.relative_to(DATA).as_posix():p for d in ('test_files','palettes','charset_files') for p in sorted((DATA/d).rglob('*')) if p.is_file() and p.suffix!='.py'}
T = DATA/'test_files'

def px(path, mode='L', **kw): return np.asarray(open_image(path, mode, **kw))

# ---------------------------------------------------------------- the bundled files

TEXTS = {o for o in FILES if o.endswith(('.txt','.md','.json','.dump','.icc','.gz','/README'))}
ERRORS = {TruncatedImageError: """charset_files/chrJapMulti.dcm charset_files/chrJapMultiExplicitIR6.dcm charset_files/chrKoreanMulti.dcm test_files/MR_truncated.dcm test_files/badVR.dcm
        test_files/JPEG2000-embedded-sequence-delimiter.dcm""".split(),
    UnsupportedImageError: [o for o in FILES if 'DICOMDIR' in o or 'TINY_ALPHA' in o or 'palettes/' in o or 'chrSQ' in o or '/rtplan' in o or '/reportsi' in o] + """test_files/rtstruct.dcm
        test_files/test-SR.dcm test_files/waveform_ecg.dcm test_files/UN_sequence.dcm test_files/priv_SQ.dcm test_files/no_meta_group_length.dcm test_files/empty_charset_LEI.dcm
        test_files/ExplVR_BigEndNoMeta.dcm test_files/ExplVR_LitEndNoMeta.dcm test_files/nested_priv_SQ.dcm test_files/meta_missing_tsyntax.dcm""".split(),
    NotAnImageError: [*TEXTS, 'test_files/no_meta.dcm']} # the last one begins with a stray byte
EXPECTED = {o:e for e,names in ERRORS.items() for o in names if o in FILES} | dict.fromkeys(TEXTS, NotAnImageError)
LOSSY = ('JPEGLSNear','JPGExtended','JPEG-lossy','jls_lossy') # decoders of their own, below
PICTURES = [o for o in FILES if o not in EXPECTED]

def test_the_bundled_files_are_there():
    "So that the tests below can't pass by finding nothing"
    assert len(PICTURES)>=80 and len(EXPECTED)>=80

@pytest.mark.parametrize('name', sorted(EXPECTED))
def test_bundled_errors(name):
    with pytest.raises(EXPECTED[name]) as e: open_image(FILES[name])
    assert type(e.value) is EXPECTED[name]

def window_by_standard(v, c, w):
    "PS3.3 C.11.2.1.2.1, pixel for pixel as it is written there"
    if v <= c - .5 - (w-1)/2: return 0.
    if v > c - .5 + (w-1)/2: return 255.
    return ((v - (c-.5))/(w-1) + .5)*255

def grey_by_hand(a, ds):
    "Stored values to 8 bits: rescale, window or range, inversion"
    v = a.astype(float)
    if 'RescaleSlope' in ds: v = v*float(ds.RescaleSlope) + float(ds.RescaleIntercept)
    if 'WindowCenter' in ds:
        c,w = (float(np.atleast_1d(np.array(o, dtype=float))[0]) for o in (ds.WindowCenter, ds.WindowWidth))
        vals,at = np.unique(v, return_inverse=True)
        g = np.array([window_by_standard(o, c, w) for o in vals])[at].reshape(v.shape)
    elif ds.BitsStored==1: g = v*255
    elif ds.BitsStored==8: g = v
    else:
        ok = a!=ds.get('PixelPaddingValue', a.min()-1)
        lo,hi = v[ok].min(),v[ok].max()
        g = np.where(ok, (v-lo)/(hi-lo)*255, 0)
    g = np.rint(g)
    return 255-g if ds.PhotometricInterpretation=='MONOCHROME1' else g

def rgb_by_hand(a, ds):
    if ds.PhotometricInterpretation=='PALETTE COLOR':
        lut = [np.frombuffer(ds[f'{c}PaletteColorLookupTableData'].value, '<u2') for c in ('Red','Green','Blue')]
        return np.rint(np.stack([o[a] for o in lut], -1)/65535*255)
    if 'YBR_FULL' in ds.PhotometricInterpretation: # PS3.3 C.7.6.3.1.2
        y,cb,cr = (a[...,i].astype(float) for i in range(3))
        a = np.stack([y+1.402*(cr-128), y-.344136*(cb-128)-.714136*(cr-128), y+1.772*(cb-128)], -1).clip(0, 255)
    return a.astype(float)/(2.**ds.BitsAllocated-1)*255 if ds.BitsAllocated>8 else a

@pytest.mark.parametrize('name', [o for o in PICTURES if not any(x in o for x in LOSSY)])
def test_bundled_pixels(name):
    path = FILES[name]
    ds = pydicom.dcmread(path, force=True)
    i = int(ds.get('NumberOfFrames') or 1)//2
    other = {'MR_small_jpeg_ls_lossless.dcm':'MR_small.dcm', 'SC_rgb_jpeg_gdcm.dcm':'SC_rgb_rle.dcm'}.get(path.name) # the same picture, where pydicom alone can't decode
    src = pydicom.dcmread(T/other) if other else ds
    codec = src.file_meta.TransferSyntaxUID.is_compressed and 'YBR_FULL' in ds.PhotometricInterpretation
    a = pixel_array(src, raw=True, index=i) if codec or 'YBR_FULL' in ds.PhotometricInterpretation else pixel_array(src, index=i)
    if ds.SamplesPerPixel==3 or ds.PhotometricInterpretation=='PALETTE COLOR':
        got,want = px(path, 'RGB').astype(float),rgb_by_hand(a, ds)
        assert abs(got-want).max() <= (1 if 'YBR_FULL' in ds.PhotometricInterpretation or ds.BitsAllocated>8 else 0) # pydicom rounds the matrix in its own way
        assert np.array_equal(px(path), np.asarray(Image.fromarray(got.astype(np.uint8)).convert('L')))
    else: assert np.array_equal(px(path), grey_by_hand(a, ds))

@pytest.mark.parametrize('a,b,tol', [
    ('MR_small.dcm','MR_small_RLE.dcm',0), ('MR_small.dcm','MR_small_jp2klossless.dcm',0), ('MR_small.dcm','MR_small_jpeg_ls_lossless.dcm',0), ('MR_small.dcm','MR_small_bigendian.dcm',0),
    ('MR_small.dcm','MR_small_expb.dcm',0), ('MR_small.dcm','MR_small_implicit.dcm',0), ('MR_small.dcm','MR_small_padded.dcm',0), ('rtdose.dcm','rtdose_rle.dcm',0), ('rtdose.dcm','rtdose_expb.dcm',0),
    ('rtdose_1frame.dcm','rtdose_rle_1frame.dcm',0), ('liver_1frame.dcm','liver_expb_1frame.dcm',0), ('SC_rgb_small_odd.dcm','SC_rgb_small_odd_big_endian.dcm',0), ('SC_rgb_small_odd.dcm','SC_rgb_small_odd_jpeg.dcm',4),
    ('SC_rgb_rle.dcm','SC_rgb_jpeg_gdcm.dcm',0), ('SC_rgb_rle.dcm','SC_rgb_rle_2frame.dcm',255), ('SC_rgb_rle.dcm','SC_rgb_gdcm_KY.dcm',2), ('SC_rgb_rle.dcm','SC_rgb_rle_16bit.dcm',1), ('SC_rgb_rle.dcm','SC_rgb_rle_32bit.dcm',1),
    ('SC_rgb_rle.dcm','SC_rgb_jls_lossy_line.dcm',10), ('SC_rgb_rle.dcm','SC_rgb_jls_lossy_sample.dcm',10), ('SC_rgb_rle.dcm','SC_rgb_dcmtk_+eb+cr.dcm',4), ('SC_jpeg_no_color_transform.dcm','SC_rgb_jpeg_dcmd.dcm',0),
    ('examples_rgb_color.dcm','examples_rgb_color.dcm',0), ('JPGExtended.dcm','JPEG-lossy.dcm',0)])
def test_pairs(a, b, tol):
    "Compressed or not, the same picture"
    x,y = px(T/a, 'RGB').astype(int),px(T/b, 'RGB').astype(int)
    assert x.shape==y.shape and abs(x-y).max()<=tol

def test_near_lossless():
    "The two test patterns: five bands of 5 rows, then all but black"
    for name,full in (('JPEGLSNearLossless_08.dcm',255),('JPEGLSNearLossless_16.dcm',65535)):
        ds = pydicom.dcmread(T/name)
        code = pydicom.encaps.get_frame(ds.PixelData, 0, number_of_frames=1)
        a = imagecodecs.jpegls_decode(code)
        assert np.array_equal(px(T/name), np.rint(a/full*255)) and px(T/name)[0,0]==255
        assert (np.diff(px(T/name)[:,0].astype(int))<=0).all()

def test_12_bit_jpeg():
    "What libjpeg (the one under the GPL, not a dependency) decodes: 0 to 264, mean 14.37; a scan of a whole body"
    ds = pydicom.dcmread(T/'JPGExtended.dcm')
    a = images._decode_jpeg(pydicom.encaps.get_frame(ds.PixelData, 0, number_of_frames=1), ds, ds.file_meta.TransferSyntaxUID, 'x')
    assert (a.min(), a.max(), a.shape)==(0, 264, (1024,256)) and abs(a.mean()-14.37)<.02
    assert np.array_equal(px(T/'JPGExtended.dcm'), np.rint(a/264*255))

# ---------------------------------------------------------------- made files

RAMP = np.arange(-2048, 2048, dtype=np.int16).reshape(64,64)

def make(path, a=RAMP, ts=uid.ExplicitVRLittleEndian, preamble=True, code=None, **kw):
    "Write stored values `a` as DICOM, with more header elements `kw`; None leaves an element out"
    a = np.asarray(a)
    colour = a.ndim>=3 and a.shape[-1]==3
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ts
    ds.SOPClassUID,ds.SOPInstanceUID = '1.2.840.10008.5.1.4.1.1.7','1.2.3.4'
    ds.file_meta.MediaStorageSOPClassUID,ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPClassUID,ds.SOPInstanceUID
    ds.Modality,ds.PatientName = 'OT','Anonymous'
    ds.Rows,ds.Columns = a.shape[-3:-1] if colour else a.shape[-2:]
    ds.SamplesPerPixel,ds.PhotometricInterpretation = (3,'RGB') if colour else (1,'MONOCHROME2')
    ds.BitsAllocated = ds.BitsStored = a.dtype.itemsize*8
    ds.PixelRepresentation = int(a.dtype.kind=='i')
    if colour: ds.PlanarConfiguration = 0
    if a.ndim==4 or (a.ndim==3 and not colour): ds.NumberOfFrames = len(a)
    for k,v in kw.items():
        if v is None: del ds[k]
        else: setattr(ds, k, v)
    ds.HighBit = ds.BitsStored-1 if isinstance(ds.get('BitsStored'), int) else 0
    if code is not None: ds.PixelData = encapsulate(code if isinstance(code, list) else [code])
    elif a.dtype.kind=='f': setattr(ds, 'FloatPixelData' if a.dtype.itemsize==4 else 'DoubleFloatPixelData', a.tobytes())
    elif 'PixelData' not in kw: ds.PixelData = a.astype(a.dtype.newbyteorder('>' if ts==uid.ExplicitVRBigEndian else '<')).tobytes() + b'\0'*(a.nbytes%2)
    if 'PixelData' in ds: ds['PixelData'].VR = 'OW' if a.dtype.itemsize>1 else 'OB'
    out = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        if preamble: pydicom.dcmwrite(out, ds, enforce_file_format=True)
        else: pydicom.dcmwrite(out, _bare(ds), implicit_vr=ts==uid.ImplicitVRLittleEndian, little_endian=ts!=uid.ExplicitVRBigEndian)
    Path(path).write_bytes(out.getvalue())
    return path

def _bare(ds):
    del ds.file_meta
    return ds

def seq(**kw):
    ds = Dataset()
    for k,v in kw.items(): setattr(ds, k, v)
    return pydicom.Sequence([ds])

@pytest.fixture
def put(tmp_path):
    n = count()
    return lambda *args, **kw: make(tmp_path/f'file{next(n)}', *args, **kw)

def linear(v, c, w): return np.rint(((v-(c-.5))/(w-1)+.5).clip(0, 1)*255)

CT = dict(Modality='CT', RescaleSlope=1, RescaleIntercept=-1024)

@pytest.mark.parametrize('name', WINDOWS)
def test_named_windows(put, name):
    assert np.array_equal(px(put(**CT), window=name), linear(RAMP-1024., *WINDOWS[name]))
    other = dict(WindowCenter=100, WindowWidth=300)
    for kw in (dict(Modality='MR'), dict(Modality='CT'), CT|dict(RescaleType='US'), CT|dict(Modality='PT')):
        assert np.array_equal(px(put(**kw, **other), window=name), px(put(**kw, **other))) # keeps what it asks for
    assert np.array_equal(px(put(**CT, RescaleType='HU'), window=name), linear(RAMP-1024., *WINDOWS[name]))

def test_windows_in_hu():
    "Air, fat, water, bone where the textbooks have them"
    g = lambda hu, w: float(images._apply_window(np.array([hu], float), *WINDOWS[w], 'LINEAR')[0])
    assert g(-1350,'lung')<1 and g(150,'lung')==255 and g(-160,'soft tissue')==0 and 120<g(40,'soft tissue')<135 and g(0,'brain')==0 and g(80,'brain')==255 and g(1300,'bone')==255

def test_stored_windows(put):
    path = put(WindowCenter=[0,500], WindowWidth=[200,1000])
    assert np.array_equal(px(path), linear(RAMP, 0, 200))
    assert np.array_equal(px(path, window=0), px(path)) and np.array_equal(px(path, window=np.int64(1)), linear(RAMP, 500, 1000))
    assert np.array_equal(px(path, window=(10.5,77)), linear(RAMP, 10.5, 77)) and np.array_equal(px(path, window=[10.5,77]), linear(RAMP, 10.5, 77))
    with pytest.raises(UnsupportedImageError, match='window 2 of a file that has 2'): open_image(path, window=2)
    with pytest.raises(UnsupportedImageError, match='window 0 of a file that has 0'): open_image(put(), window=0)

def test_functions(put):
    kw = dict(WindowCenter=100, WindowWidth=400)
    assert np.array_equal(px(put(**kw, VOILUTFunction='LINEAR_EXACT')), np.rint(((RAMP-100)/400+.5).clip(0, 1)*255))
    assert np.array_equal(px(put(**kw, VOILUTFunction='SIGMOID')), np.rint(255/(1+np.exp(-4*(RAMP-100)/400))))
    with pytest.raises(ImageError): open_image(put(**kw, VOILUTFunction='LOG'))
    step = px(put(WindowCenter=0.5, WindowWidth=1))
    assert np.array_equal(step, np.where(RAMP<=0, 0, 255))
    small = px(put(RescaleSlope='0.001', RescaleIntercept=0, WindowCenter='0.5', WindowWidth='0.5')) # a width that the plain form can't have
    assert np.array_equal(small, np.rint(((RAMP*.001-.5)/.5+.5).clip(0, 1)*255))
    for w in (0,-5): assert np.array_equal(px(put(WindowCenter=0, WindowWidth=w)), px(put())) # no window at all

def test_against_pydicoms_windowing(put):
    ds = pydicom.dcmread(put(**CT, WindowCenter=-300, WindowWidth=1234, BitsStored=12))
    lo,hi = (o*1.-1024 for o in (-2048,2047))
    want = (apply_windowing(RAMP-1024., ds)-lo)/(hi-lo)*255
    assert np.array_equal(px(ds.filename), np.rint(want))

def test_monochrome1_once(put):
    w = dict(WindowCenter=100, WindowWidth=300)
    for kw in ({}, w, CT, CT|w):
        plain = px(put(**kw))
        for shape in ('INVERSE','IDENTITY'): assert np.array_equal(px(put(**kw, PhotometricInterpretation='MONOCHROME1', PresentationLUTShape=shape)), 255-plain)
    g8 = np.arange(64, dtype=np.uint8).reshape(8,8)
    assert np.array_equal(px(put(g8, PhotometricInterpretation='MONOCHROME1')), 255-g8)

def test_rescale(put):
    up,down = px(put(RescaleSlope=2, RescaleIntercept=7)),px(put(RescaleSlope=-2, RescaleIntercept=7))
    assert np.array_equal(up, px(put())) and np.array_equal(down, 255-up)
    assert np.array_equal(px(put(RescaleSlope=-1, RescaleIntercept=0, WindowCenter=300, WindowWidth=500)), linear(-RAMP, 300, 500))
    for kw in (dict(RescaleSlope=0, RescaleIntercept=5), dict(RescaleSlope=1, RescaleIntercept=0)): assert np.array_equal(px(put(**kw)), px(put()))

@pytest.mark.parametrize('order', '<>')
@pytest.mark.parametrize('dt', ['u1','i1','u2','i2','u4','f4'])
def test_each_value_once(put, dt, order):
    "Values are computed once each, not pixel by pixel; the result is the same"
    rng = np.random.default_rng(0)
    a = rng.integers(-100 if dt[0]=='i' else 0, 120, (30,50)).astype(order+dt)
    lut = seq(LUTDescriptor=[240,0,16], LUTData=[int(o) for o in rng.integers(0, 60000, 240)])
    for kw in ({}, dict(WindowCenter=20, WindowWidth=60), dict(PixelPaddingValue=7), dict(PixelPaddingValue=7, PixelPaddingRangeLimit=200), dict(WindowCenter=0, WindowWidth=60, VOILUTFunction='SIGMOID'),
        dict(ModalityLUTSequence=lut), dict(VOILUTSequence=lut), CT, dict(PhotometricInterpretation='MONOCHROME1', PixelPaddingValue=7)):
        ds = Dataset()
        for k,v in (dict(PhotometricInterpretation='MONOCHROME2', BitsStored=a.itemsize*8, PixelRepresentation=int(dt[0]=='i')) | kw).items(): setattr(ds, k, v)
        for w in (None, 'lung', (30,99)):
            got = images._dicom_grey(a, ds, w, 'x', '<')
            assert got.dtype==np.uint8 and np.array_equal(got, images._greys(a, ds, w, 'x', '<'))

def test_eight_bits_are_left_alone(put):
    g = (np.arange(64, dtype=np.uint8)+30).reshape(8,8)
    assert np.array_equal(px(put(g)), g) and np.array_equal(px(put(g, RescaleSlope=1, RescaleIntercept=0)), g)
    assert np.array_equal(px(put(g.astype(np.uint16), BitsStored=8)), g)
    assert np.array_equal(px(put(g//2, BitsStored=7)), np.rint((g//2)*255./127))
    assert px(put(g, WindowCenter=60, WindowWidth=20)).max()==255

def test_unused_bits_and_signs(put):
    a = (np.arange(4096, dtype=np.uint16)).reshape(64,64)
    assert np.array_equal(px(put(a|0xf000, BitsStored=12)), px(put(a)))
    s = (RAMP.view(np.uint16)&0xfff).view(np.int16) # 12-bit two's complement, the upper bits empty
    assert np.array_equal(px(put(s, BitsStored=12)), px(put(RAMP)))
    i8 = np.arange(-32, 32, dtype=np.int8).reshape(8,8)
    assert np.array_equal(px(put(i8)), np.rint((i8+32.)*255/63))

@pytest.mark.parametrize('dt', [np.uint32, np.int32])
def test_32_bit(put, dt):
    a = np.linspace(0 if dt==np.uint32 else -2**31, np.iinfo(dt).max, 64).astype(dt).reshape(8,8)
    assert np.array_equal(px(put(a)), np.rint((a.astype(float)-a.min())*255/(float(a.max())-a.min())))

@pytest.mark.parametrize('dt', [np.float32, np.float64])
def test_float(put, dt):
    a = np.linspace(-1, 3, 64, dtype=dt).reshape(8,8)
    assert np.array_equal(px(put(a)), np.rint((a-a.min())*255/(a.max()-a.min())))
    a[0,0] = np.nan
    got = px(put(a, WindowCenter=1, WindowWidth=2))
    assert got[0,0]==0 and got.max()==255 and px(put(a))[0,0]==0
    with pytest.raises(UnsupportedImageError, match='finite'): open_image(put(a*np.nan))

def test_one_bit(put):
    mask = np.random.default_rng(0).integers(0, 2, (3,9,7), dtype=np.uint8)
    bits = np.packbits(mask.ravel(), bitorder='little').tobytes()
    path = put(mask, BitsAllocated=1, BitsStored=1, PixelData=bits + b'\0'*(len(bits)%2))
    for i in range(3): assert np.array_equal(px(path, frame=i), mask[i]*255) # frames do not begin on a byte
    path.write_bytes(path.read_bytes()[:-5])
    assert np.array_equal(px(path, frame=1), mask[1]*255)
    with pytest.raises(TruncatedImageError, match='cut short'): open_image(path, frame=2)
    assert px(put(mask[0]*0, BitsAllocated=1, BitsStored=1, PixelData=bytes(8))).max()==0

def test_padding(put):
    a = RAMP.copy()
    a[:,:5] = -32000
    got = px(put(a, PixelPaddingValue=-32000))
    assert (got[:,:5]==0).all() and np.array_equal(got[:,5:], np.rint((a[:,5:].astype(float)-a[:,5:].min())*255/(int(a.max())-a[:,5:].min())))
    inv = px(put(a, PixelPaddingValue=-32000, PhotometricInterpretation='MONOCHROME1'))
    assert (inv[:,:5]==0).all() and np.array_equal(inv[:,5:], 255-got[:,5:]) # still black
    a[:,5:8] = -31990
    for pair in ((-32000,-31990), (-31990,-32000)): assert (px(put(a, PixelPaddingValue=pair[0], PixelPaddingRangeLimit=pair[1]))[:,:8]==0).all()
    assert px(put(RAMP*0-32000, PixelPaddingValue=-32000)).max()==0 # nothing but padding
    assert np.array_equal(px(put(a, PixelPaddingValue=-32000, WindowCenter=0, WindowWidth=100)), linear(a, 0, 100))
    assert px(put(np.full((4,4), 9, np.uint16))).max()==0 # one value is black

@pytest.mark.parametrize('bits,dt', [(8,np.uint8), (12,np.uint16), (16,np.uint16)])
@pytest.mark.parametrize('ts', [uid.ExplicitVRLittleEndian, uid.ImplicitVRLittleEndian, uid.ExplicitVRBigEndian])
def test_voi_lut(put, bits, dt, ts):
    "A table of 1000 entries from -100 on; 8-bit entries too, more than 256 of them"
    lut = (np.linspace(0, 1, 1000)**2*(2**bits-1)).astype(np.uint16)
    item = seq(LUTDescriptor=[1000,-100,bits], LUTData=lut.tolist())
    item[0]['LUTDescriptor'].VR,item[0]['LUTData'].VR = 'SS','US'
    want = np.rint(lut[np.clip(RAMP+100, 0, 999)].astype(float)*255/(2**bits-1))
    path = put(VOILUTSequence=item, WindowCenter=0, WindowWidth=50, ts=ts)
    assert np.array_equal(px(path), want) and np.array_equal(px(path, window=0), want)
    assert np.array_equal(px(path, window=1), linear(RAMP, 0, 50)) # tables first, then windows
    with pytest.raises(UnsupportedImageError, match='that has 2'): open_image(path, window=2)
    assert np.array_equal(px(put(VOILUTSequence=item, RescaleSlope=1, RescaleIntercept=0, PhotometricInterpretation='MONOCHROME1', ts=ts)), 255-want)
    raw = seq(LUTDescriptor=[1000,-100,bits], LUTData=lut.astype(('>' if ts==uid.ExplicitVRBigEndian else '<')+'u2').tobytes())
    raw[0]['LUTDescriptor'].VR,raw[0]['LUTData'].VR = 'SS','OW'
    assert np.array_equal(px(put(VOILUTSequence=raw, ts=ts)), want)

def test_modality_lut(put):
    a = np.arange(64, dtype=np.uint16).reshape(8,8)
    lut = (np.arange(64)**2).astype(np.uint16)
    item = seq(LUTDescriptor=[64,0,16], LUTData=lut.tolist(), ModalityLUTType='US')
    item[0]['LUTDescriptor'].VR,item[0]['LUTData'].VR = 'US','US'
    assert np.array_equal(px(put(a, ModalityLUTSequence=item)), np.rint(lut[a]*255./lut.max()))
    assert np.array_equal(px(put(a, ModalityLUTSequence=item, WindowCenter=1000, WindowWidth=900)), linear(lut[a]*1., 1000, 900)) # the window comes after it

def test_frames(put):
    a = np.stack([RAMP+i*100 for i in range(5)])
    path = put(a, WindowCenter=0, WindowWidth=3000)
    assert np.array_equal(px(path), px(path, frame=2))
    for i in range(5): assert np.array_equal(px(path, frame=i), linear(a[i], 0, 3000))
    with pytest.raises(UnsupportedImageError, match='frame 5 of a file that has 5'): open_image(path, frame=5)
    with pytest.raises(UnsupportedImageError, match='frame 1 of a file that has 1'): open_image(put(), frame=1)
    assert np.array_equal(load_image(path, 64, frame=4, window=(0,3000)), linear(a[4], 0, 3000))
    even = put(a[:4], WindowCenter=0, WindowWidth=3000)
    assert np.array_equal(px(even), px(even, frame=2))

def test_enhanced(put):
    "Slope and window in the functional groups: shared by all frames, or for each"
    a = np.stack([RAMP]*3)
    shared = seq(PixelValueTransformationSequence=seq(RescaleSlope=1, RescaleIntercept=-1024, RescaleType='HU'), FrameVOILUTSequence=seq(WindowCenter=40, WindowWidth=400))
    path = put(a, Modality='CT', SharedFunctionalGroupsSequence=shared)
    assert np.array_equal(px(path), linear(RAMP-1024., 40, 400)) and np.array_equal(px(path, window='lung'), linear(RAMP-1024., -600, 1500))
    per = pydicom.Sequence([seq(FrameVOILUTSequence=seq(WindowCenter=100*i, WindowWidth=300))[0] for i in range(3)])
    path = put(a, Modality='CT', SharedFunctionalGroupsSequence=shared, PerFrameFunctionalGroupsSequence=per)
    for i in range(3): assert np.array_equal(px(path, frame=i), linear(RAMP-1024., 100*i, 300))

def test_only_the_frame_is_read(tmp_path, monkeypatch):
    a = np.random.default_rng(0).integers(0, 4096, (400,64,64), dtype=np.uint16)
    small = np.stack([RAMP]*200).view(np.uint16)
    read = []
    class Counted(io.FileIO):
        def readinto(self, b):
            n = super().readinto(b)
            read.append(n or 0)
            return n
    monkeypatch.setattr(images, '_open_file', lambda path, read: io.BufferedReader(Counted(path), 4096))
    for path in (make(tmp_path/'a', a), make(tmp_path/'b', small, uid.RLELossless, code=[pydicom.pixels.encoders.RLELosslessEncoder.encode(o, rows=64, columns=64, samples_per_pixel=1,
            number_of_frames=1, bits_allocated=16, bits_stored=16, photometric_interpretation='MONOCHROME2', pixel_representation=0) for o in small])):
        read.clear()
        open_image(path, frame=300 if path.name=='a' else 3)
        assert sum(read) < path.stat().st_size/20

# ---------------------------------------------------------------- colours

COLOUR = np.random.default_rng(0).integers(0, 256, (9,7,3), dtype=np.uint8)

def test_rgb(put):
    assert np.array_equal(px(put(COLOUR), 'RGB'), COLOUR)
    planes = np.moveaxis(COLOUR, 2, 0).tobytes()
    assert np.array_equal(px(put(COLOUR, PlanarConfiguration=1, PixelData=planes+b'\0'), 'RGB'), COLOUR)
    assert np.array_equal(px(put(COLOUR, WindowCenter=3, WindowWidth=4), 'RGB', window=(1,2)), COLOUR) # colours have no window
    film = np.stack([COLOUR,COLOUR[::-1]])
    assert np.array_equal(px(put(film), 'RGB', frame=1), COLOUR[::-1])

@pytest.mark.parametrize('planar', [0,1])
def test_ybr(put, planar):
    y,cb,cr = (COLOUR[...,i].astype(float) for i in range(3))
    want = np.stack([y+1.402*(cr-128), y-.344136*(cb-128)-.714136*(cr-128), y+1.772*(cb-128)], -1).clip(0, 255)
    data = (np.moveaxis(COLOUR, 2, 0) if planar else COLOUR).tobytes()+b'\0'
    assert abs(px(put(COLOUR, PhotometricInterpretation='YBR_FULL', PlanarConfiguration=planar, PixelData=data), 'RGB')-want).max()<=1

def test_palettes(put):
    a = np.arange(600, dtype=np.uint16).reshape(20,30)
    for n,bits in ((600,16), (600,8), (256,8)):
        luts = [(np.arange(n)*k%(2**bits)).astype(np.uint16 if bits==16 else np.uint8) for k in (1,3,101)]
        kw = {f'{c}PaletteColorLookupTable{d}':v for c,l in zip(('Red','Green','Blue'), luts) for d,v in (('Descriptor',[n,10,bits]),('Data',l.tobytes()))}
        want = np.stack([l[np.clip(a.astype(int)-10, 0, n-1)] for l in luts], -1)*(255/(2**bits-1))
        assert np.array_equal(px(put(a, PhotometricInterpretation='PALETTE COLOR', **kw), 'RGB'), np.rint(want))

def test_segmented_palette(put):
    "One straight segment, from 0 to 65535 in 256 steps"
    seg = struct.pack('<6H', 0, 1, 0, 1, 255, 65535)
    kw = {f'{c}PaletteColorLookupTableDescriptor':[256,0,16] for c in ('Red','Green','Blue')} | {f'Segmented{c}PaletteColorLookupTableData':seg for c in ('Red','Green','Blue')}
    a = np.arange(256, dtype=np.uint8).reshape(16,16)
    assert abs(px(put(a, PhotometricInterpretation='PALETTE COLOR', **kw), 'RGB')[...,1].astype(int)-a).max()<=1

@pytest.mark.parametrize('kw', [dict(PhotometricInterpretation='YBR_PARTIAL_420'), dict(PhotometricInterpretation='HSV'), dict(PhotometricInterpretation='MONOCHROME2'), dict(SamplesPerPixel=4), dict(SamplesPerPixel=2)])
def test_unknown_colours(put, kw):
    with pytest.raises(UnsupportedImageError, match='colours'): open_image(put(COLOUR, **kw))

# ---------------------------------------------------------------- compressed

U12 = (np.arange(4096).reshape(64,64)**2 % 4093).astype(np.uint16)

@pytest.mark.parametrize('ts', [uid.JPEGLossless, uid.JPEGLosslessSV1])
def test_jpeg_lossless(put, ts):
    for a,kw in ((U12,dict(BitsStored=12)), (U12*16,{}), (U12.astype(np.uint8),{})):
        code = imagecodecs.jpeg8_encode(a, lossless=True, bitspersample=kw.get('BitsStored', a.dtype.itemsize*8))
        assert np.array_equal(px(put(a, ts, code=code, **kw)), px(put(a, **kw)))
    signed = imagecodecs.jpeg8_encode(RAMP.view(np.uint16), lossless=True)
    assert np.array_equal(px(put(RAMP, ts, code=signed, **CT), window='lung'), linear(RAMP-1024., -600, 1500))
    low = imagecodecs.jpeg8_encode(RAMP.view(np.uint16)&0xfff, lossless=True, bitspersample=12) # 12 bits of two's complement
    assert np.array_equal(px(put(RAMP, ts, code=low, BitsStored=12, **CT), window='bone'), linear(RAMP-1024., 400, 1800))
    film = [imagecodecs.jpeg8_encode(U12+i, lossless=True) for i in range(3)]
    assert np.array_equal(px(put(np.stack([U12]*3), ts, code=film, WindowCenter=2000, WindowWidth=3000), frame=2), linear(U12+2., 2000, 3000))

def test_jpeg_ls(put):
    for a,kw in ((U12,dict(BitsStored=16)), (U12.astype(np.uint8),{})):
        assert np.array_equal(px(put(a, uid.JPEGLSLossless, code=imagecodecs.jpegls_encode(a), **kw)), px(put(a, **kw)))
    assert np.array_equal(px(put(RAMP, uid.JPEGLSLossless, code=imagecodecs.jpegls_encode(RAMP.view(np.uint16)), **CT), window='bone'), linear(RAMP-1024., 400, 1800))
    rgb = np.kron(COLOUR, np.ones((8,8,1), np.uint8))
    assert np.array_equal(px(put(rgb, uid.JPEGLSLossless, code=imagecodecs.jpegls_encode(rgb)), 'RGB'), rgb)

@pytest.mark.parametrize('ts', [uid.JPEG2000Lossless, uid.JPEG2000])
def test_jpeg_2000(put, ts):
    for a in (U12, RAMP, U12.astype(np.uint8)): assert np.array_equal(px(put(a, ts, code=imagecodecs.jpeg2k_encode(a, level=0, codecformat='J2K', reversible=True))), px(put(a)))
    rgb = np.kron(COLOUR, np.ones((8,8,1), np.uint8))
    for box in ('J2K','JP2'): # the second is not allowed in DICOM, and is found in it
        code = imagecodecs.jpeg2k_encode(rgb, level=0, codecformat=box, reversible=True, mct=True)
        assert np.array_equal(px(put(rgb, ts, code=code, PhotometricInterpretation='YBR_RCT'), 'RGB'), rgb)

@pytest.mark.parametrize('ts', [uid.HTJ2KLossless, uid.HTJ2KLosslessRPCL, uid.HTJ2K])
def test_htj2k(put, ts):
    for a in (U12, U12.astype(np.uint8)): assert np.array_equal(px(put(a, ts, code=imagecodecs.htj2k_encode(a, level=0, reversible=True))), px(put(a)))

def test_jpeg_baseline(put):
    out = io.BytesIO()
    Image.fromarray(np.kron(COLOUR, np.ones((8,8,1), np.uint8))).save(out, 'JPEG', quality=95)
    want = np.asarray(Image.open(out).convert('RGB'))
    for pi in ('YBR_FULL_422','YBR_FULL'): assert abs(px(put(want, uid.JPEGBaseline8Bit, code=out.getvalue(), PhotometricInterpretation=pi), 'RGB').astype(int)-want).max()<=2
    grey = io.BytesIO()
    Image.fromarray(U12.astype(np.uint8)).save(grey, 'JPEG')
    for ts in (uid.JPEGBaseline8Bit, uid.JPEGExtended12Bit): assert np.array_equal(px(put(U12.astype(np.uint8), ts, code=grey.getvalue())), np.asarray(Image.open(grey)))

def test_deflated(put, tmp_path, monkeypatch):
    path = put(U12, uid.DeflatedExplicitVRLittleEndian)
    assert np.array_equal(px(path), px(make(tmp_path/'b', U12)))
    for n in (400, 700, 2000): # cut
        path.with_name('c').write_bytes(path.read_bytes()[:n])
        with pytest.raises(TruncatedImageError): open_image(path.with_name('c'))
    monkeypatch.setattr(images, 'MAX_PIXELS', 1000)
    with pytest.raises(ImageTooLargeError, match='inflated'): open_image(path)

@pytest.mark.parametrize('ts', [uid.MPEG4HP41, uid.HEVCMP51, uid.MPEG2MPML, uid.UID('1.2.840.113619.5.2'), uid.UID('1.2.3.4.5')])
def test_unknown_transfer_syntaxes(tmp_path, ts):
    b = make(tmp_path/'a', U12, uid.JPEG2000Lossless, code=b'\0'*100).read_bytes()
    old,new = b'1.2.840.10008.1.2.4.90',ts.encode()
    new += b'\0'*(len(new)%2)
    b = b.replace(b'UI\x16\0'+old, b'UI'+struct.pack('<H', len(new))+new)
    (tmp_path/'b').write_bytes(b[:140]+struct.pack('<I', int.from_bytes(b[140:144], 'little')+len(new)-len(old))+b[144:])
    with pytest.raises(UnsupportedImageError, match='compressed in a way'): open_image(tmp_path/'b')

def test_a_missing_decoder_is_named(put, monkeypatch):
    path = put(U12, uid.JPEGLossless, code=imagecodecs.jpeg8_encode(U12, lossless=True))
    monkeypatch.setitem(sys.modules, 'imagecodecs', None)
    with pytest.raises(UnsupportedImageError, match='pip install imagecodecs'): open_image(path)
    j2k = put(U12, uid.JPEG2000Lossless, code=(T/'MR_small_jp2klossless.dcm').read_bytes()[-4500:])
    monkeypatch.setattr('pydicom.pixels.decoders.base.Decoder.available_plugins', ())
    with pytest.raises(UnsupportedImageError, match='pip install pylibjpeg-openjpeg'): open_image(T/'MR_small_jp2klossless.dcm')
    assert j2k.exists()

# ---------------------------------------------------------------- what is DICOM

@pytest.mark.parametrize('ts', [uid.ExplicitVRLittleEndian, uid.ImplicitVRLittleEndian, uid.ExplicitVRBigEndian])
@pytest.mark.parametrize('name', ['scan.dcm','scan','scan.jpg','IM000001','1.2.840.113619'])
def test_without_preamble(tmp_path, ts, name):
    want = px(make(tmp_path/'whole', **CT), window='lung')
    assert np.array_equal(px(make(tmp_path/name, ts=ts, preamble=False, **CT), window='lung'), want)
    b = make(tmp_path/'meta', ts=ts, **CT).read_bytes()
    (tmp_path/'meta').write_bytes(b[132:]) # only preamble and DICM are missing
    assert np.array_equal(px(tmp_path/'meta', window='lung'), want)

def test_preambles_may_hold_anything(put):
    path = put(**CT)
    want,b = px(path),path.read_bytes()
    for head in (b'II*\0\x08\0\0\0', b'\x89PNG\r\n\x1a\n', b'\xff\xd8\xff\xe0', os.urandom(128)):
        path.write_bytes(head.ljust(128, b'\0')+b[128:])
        assert np.array_equal(px(path), want)

@pytest.mark.parametrize('data', [b'DICM', bytes(128), bytes(132), b'\x08\0', b'\x08\0\x05\0', b'\x08\0\x05\0CS', b'\x08\0\x05\0CS\x0a\0ISO_IR 100', b'\x08\0\x08\0'*300, b'\x02\0'*500,
    b'Patient,Finding\nDoe,Pneumonia\n'*40, b'\x08\0\x05\0'+bytes(500), b'\0\x08\0\x05XX'+bytes(500), b'\x10\0\0\0'*100, '\ufeffPatient'.encode('utf-16'), b'\x1f\x8b\x08\0'+bytes(400), b'\x08\x00\x00\x00\xff\xff\xff\xff'*100])
def test_others_are_not_dicom(tmp_path, data):
    (tmp_path/'x.dcm').write_bytes(data)
    with pytest.raises(NotAnImageError): open_image(tmp_path/'x.dcm')

def test_random_bytes_are_not_dicom(tmp_path):
    rnd = random.Random(0)
    for i in range(3000):
        head = bytearray(rnd.randbytes(300))
        if i%2: head[:2] = rnd.choice((b'\x08\0', b'\0\x08', b'\2\0', b'\x10\0'))
        if i%4==1: head[2:4] = bytes([rnd.randrange(99), 0])
        assert not images._is_dicom(bytes(head))

def test_dicm_without_a_data_set(tmp_path):
    for tail in (b'', b'\0', bytes(100), b'text '*30, os.urandom(400)):
        (tmp_path/'x').write_bytes(bytes(128)+b'DICM'+tail)
        with pytest.raises((UnsupportedImageError, TruncatedImageError)): open_image(tmp_path/'x')

def test_encrypted(tmp_path):
    (tmp_path/'x.dcm').write_bytes(bytes.fromhex('308006092a864886f70d010703a080308002010031')+os.urandom(2000))
    with pytest.raises(UnsupportedImageError, match='encrypted'): open_image(tmp_path/'x.dcm')

# ---------------------------------------------------------------- bad files

@pytest.mark.parametrize('kw,err', [(dict(Rows=0),TruncatedImageError), (dict(Columns=0),TruncatedImageError), (dict(Rows=65535, Columns=65535),ImageTooLargeError), (dict(Rows=65),TruncatedImageError),
    (dict(Rows=None),TruncatedImageError), (dict(BitsAllocated=12),TruncatedImageError), (dict(BitsStored=17),TruncatedImageError), (dict(PixelRepresentation=None),TruncatedImageError),
    (dict(PhotometricInterpretation=None),TruncatedImageError), (dict(SamplesPerPixel=None),TruncatedImageError), (dict(BitsAllocated=None),TruncatedImageError), (dict(NumberOfFrames=3),TruncatedImageError),
    (dict(BitsAllocated=64, BitsStored=64),TruncatedImageError)])
def test_bad_headers(put, kw, err):
    path = put(**kw)
    with pytest.raises(err): open_image(path)

def test_size_is_checked_before_decoding(put, monkeypatch):
    monkeypatch.setattr(images, '_decode_dicom', lambda *args: pytest.fail('decoded'))
    path = put(Rows=60000, Columns=60000)
    with pytest.raises(ImageTooLargeError, match='60000 x 60000'): open_image(path)
    monkeypatch.setattr(images, 'MAX_PIXELS', 64*64-1)
    with pytest.raises(ImageTooLargeError, match='64 x 64'): open_image(put())

def test_coded_sizes_must_agree(put, monkeypatch):
    "A JPEG 2000 picture that is a thousand times larger than its header says is not decoded"
    big = np.zeros((2048,2048), np.uint8)
    codes = {uid.JPEG2000Lossless: imagecodecs.jpeg2k_encode(big, level=0, codecformat='J2K', reversible=True), uid.JPEGLSLossless: imagecodecs.jpegls_encode(big),
        uid.JPEGLossless: imagecodecs.jpeg8_encode(big, lossless=True), uid.JPEGBaseline8Bit: imagecodecs.jpeg8_encode(big)}
    for ts,code in codes.items():
        assert images._coded_size(code)==(2048,2048,1)
        with pytest.raises(TruncatedImageError, match='another size'): open_image(put(np.zeros((64,64), np.uint8), ts, code=code))
        with pytest.raises(TruncatedImageError): open_image(put(big, ts, code=code[:len(code)//2]))

def test_jpeg_ls_ends_with_its_end(put, monkeypatch):
    "CharLS gets no byte behind the end of the picture: it can loop for ever on data that end otherwise"
    a = np.random.default_rng(0).integers(0, 256, (64,64), dtype=np.uint8)
    code,real,seen = imagecodecs.jpegls_encode(a),imagecodecs.jpegls_decode,[]
    monkeypatch.setattr(imagecodecs, 'jpegls_decode', lambda b: seen.append(bytes(b)) or real(b))
    for tail in (b'', bytes(9), b'\x80'*30): assert np.array_equal(px(put(a, uid.JPEGLSLossless, code=code+tail)), a)
    with pytest.raises(TruncatedImageError): open_image(put(a, uid.JPEGLSLossless, code=code[:300]+b'\xff\xd9'+bytes(20)))
    assert len(seen)==4 and all(o.endswith(b'\xff\xd9') for o in seen)

def test_boxes_of_length_0(put):
    "pydicom would look for the end of them for ever"
    rgb = np.kron(COLOUR, np.ones((8,8,1), np.uint8))
    code = bytearray(imagecodecs.jpeg2k_encode(rgb, level=0, codecformat='JP2', reversible=True))
    at = code.index(b'ftyp')-4
    for n in (0,1,7,2**32-1):
        code[at:at+4] = n.to_bytes(4, 'big')
        with pytest.raises(TruncatedImageError): open_image(put(rgb, uid.JPEG2000Lossless, code=bytes(code)))

FUZZ = [T/o for o in ('CT_small.dcm','MR_small_implicit.dcm','MR_small_jpeg_ls_lossless.dcm','SC_rgb_jpeg_gdcm.dcm','MR_small_jp2klossless.dcm','MR_small_RLE.dcm','SC_rgb_dcmtk_+eb+cy+s2.dcm',
    'image_dfl.dcm','examples_palette.dcm','liver_expb_1frame.dcm','GDCMJ2K_TextGBR.dcm','SC_ybr_full_422_uncompressed.dcm','rtdose_expb.dcm','SC_rgb_jls_lossy_line.dcm','JPGExtended.dcm')]

@pytest.mark.parametrize('path', FUZZ, ids=lambda p: p.name)
def test_damage(path, tmp_path):
    "Random bytes anywhere: a picture or an ImageError, and nothing printed that the C libraries don't print"
    b,rnd = path.read_bytes(),random.Random(path.name)
    at = max(b.find(b'\xe0\x7f\x10\0'), b.find(b'\x7f\xe0\0\x10'), 150)
    for i in range(40):
        x = bytearray(b)
        for _ in range(rnd.choice((1,2,5,20))): x[rnd.randrange(min(len(x), rnd.choice((at, at+250, len(x)))))] = rnd.choice((rnd.randrange(256),0,255))
        (tmp_path/'x').write_bytes(x)
        with warnings.catch_warnings():
            warnings.simplefilter('error')
            try: assert open_image(tmp_path/'x', 'RGB').mode=='RGB'
            except ImageError as e: assert str(e) and e.reason.isascii()

@pytest.mark.parametrize('path', FUZZ, ids=lambda p: p.name)
def test_truncation(path, tmp_path):
    "A file cut anywhere is the whole picture (only padding was lost) or an ImageError: never half of it"
    b,want,rnd = path.read_bytes(),px(path, 'RGB'),random.Random(path.name)
    for n in [*(len(b)-i for i in (1,2,3,9,20)), *(rnd.randrange(1, len(b)) for _ in range(25))]:
        (tmp_path/'x').write_bytes(b[:n])
        try: got = px(tmp_path/'x', 'RGB')
        except ImageError: continue
        assert np.array_equal(got, want) and (n>len(b)*.9 or 'rtdose' in path.name) # the frame in the middle of a film may be whole

# ---------------------------------------------------------------- privacy and quiet

SECRETS = 'Zebedee^Quux', 'PID-778899', '19310203', 'Hidden Hospital'

def named(path, **kw):
    return make(path, PatientName=SECRETS[0], PatientID=SECRETS[1], PatientBirthDate=SECRETS[2], InstitutionName=SECRETS[3], **kw)

def raw_element(group, elem, vr, value): return struct.pack('<HH2sH', group, elem, vr, len(value)) + value

def bad_value(path, keyword, vr, value):
    "The file with a header value that pydicom complains of, and quotes"
    b = Path(path).read_bytes()
    tag = pydicom.tag.Tag(keyword)
    at = b.index(struct.pack('<HH2s', tag.group, tag.elem, vr))
    n = struct.unpack_from('<H', b, at+6)[0]
    Path(path).write_bytes(b[:at] + raw_element(tag.group, tag.elem, vr, value) + b[at+8+n:])
    return path

def told(e): return ''.join([str(e), repr(e), repr(e.args), e.reason, *traceback.format_exception(e)])

def test_no_header_value_is_told(tmp_path, caplog, capfd, recwarn):
    caplog.set_level(logging.DEBUG)
    extra = dict(WindowCenter=1, WindowWidth=2, RescaleSlope=1, RescaleIntercept=0, NumberOfFrames=1)
    files = [bad_value(named(tmp_path/k, **extra), k, vr, v) for k,vr,v in (('WindowCenter',b'DS',b'Zebedee^Quux'), ('WindowWidth',b'DS',b'PID-778899'), ('RescaleSlope',b'DS',b'Zebedee^Quux'),
        ('NumberOfFrames',b'IS',b'Zebedee^Quux'), ('PhotometricInterpretation',b'CS',b'Hidden Hospital '), ('Rows',b'US',b'Zebedee^Quux'), ('BitsStored',b'US',b'PID-778899'), ('TransferSyntaxUID',b'UI',b'PID-778899'),
        ('RescaleIntercept',b'DS',b'Zebedee^Quux'), ('PixelRepresentation',b'US',b''), ('Columns',b'US',b'PID-778899'))]
    whole = named(tmp_path/'whole').read_bytes()
    for n in range(140, len(whole), 60):
        (tmp_path/f'cut{n}').write_bytes(whole[:n])
        files.append(tmp_path/f'cut{n}')
        (tmp_path/f'flip{n}').write_bytes(whole[:n]+b'Zebedee^Quux'+whole[n+12:])
        files.append(tmp_path/f'flip{n}')
    n_errors = 0
    for path in files:
        try: im = open_image(path)
        except ImageError as e:
            n_errors += 1
            text = told(e)
            assert not any(s in text for s in SECRETS), text
            assert e.__cause__ is None and (e.__context__ is None or e.__suppress_context__)
        else: assert im.info=={}
    out,err = capfd.readouterr()
    assert n_errors>50 and out==err=='' and not caplog.text and not len(recwarn)

def test_pictures_carry_nothing(tmp_path):
    path = named(tmp_path/'a')
    for mode in ('L','RGB'):
        im = open_image(path, mode)
        assert im.info=={} and not im.getexif()
        for fmt in ('PNG','TIFF'):
            out = io.BytesIO()
            im.save(out, fmt)
            assert not any(s.encode() in out.getvalue() for s in SECRETS)

def test_only_what_is_needed_is_read(tmp_path, monkeypatch):
    "Names do not even become values"
    seen = []
    real = pydicom.dcmread
    def read(*args, **kw):
        seen.append(real(*args, **kw))
        return seen[-1]
    monkeypatch.setattr(pydicom, 'dcmread', read)
    open_image(named(tmp_path/'a'))
    assert 'PatientName' not in seen[0] and not any(s in str(seen[0]) for s in SECRETS)

def test_switches_go_back(put, tmp_path):
    path,bad = put(),tmp_path/'b'
    bad.write_bytes(path.read_bytes()[:700])
    with warnings.catch_warnings():
        warnings.filterwarnings('always', module='nothing')
        before = list(warnings.filters),logging.getLogger('pydicom').propagate
        for p in (path, bad, T/'badVR.dcm'):
            try: open_image(p)
            except ImageError: pass
            assert before == (list(warnings.filters), logging.getLogger('pydicom').propagate)
    assert images._quiet.n==0

def test_threads(put):
    paths = [FILES[o] for o in FILES if 'TINY' not in o and 'charset' not in o]
    def see(path):
        try: return px(path, 'RGB').tobytes()
        except ImageError as e: return type(e),e.reason
    alone,before = [see(o) for o in paths],list(warnings.filters)
    with ThreadPoolExecutor(8) as ex: together = list(ex.map(see, paths*2))
    assert together==alone*2 and list(warnings.filters)==before and images._quiet.n==0 and logging.getLogger('pydicom').propagate

def test_pydicom_is_loaded_when_needed(tmp_path):
    Image.fromarray(COLOUR).save(tmp_path/'a.png')
    code = f'''import sys
from mednist_fastai.images import open_image
open_image({str(tmp_path/'a.png')!r})
print('pydicom' in sys.modules, 'imagecodecs' in sys.modules)
open_image({str(T/'CT_small.dcm')!r})
print('pydicom' in sys.modules, 'imagecodecs' in sys.modules)'''
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout.split()==['False','False','True','False']

# ---------------------------------------------------------------- arguments

@pytest.mark.parametrize('kw', [dict(window='liver'), dict(window=-1), dict(window=(1,)), dict(window=(40,0)), dict(window=(40,-1)), dict(window=1.5), dict(frame=-1), dict(frame=1.5), dict(frame='2')])
def test_wrong_arguments(put, kw, tmp_path):
    Image.fromarray(COLOUR).save(tmp_path/'a.png')
    for path in (put(), tmp_path/'a.png'): # a wrong argument is one for every file
        with pytest.raises(ValueError, match=next(iter(kw))): open_image(path, **kw)

def test_other_formats_ignore_them(tmp_path):
    Image.fromarray(COLOUR).save(tmp_path/'a.png')
    for kw in (dict(window='lung'), dict(window=7), dict(window=(1,2)), dict(frame=99)): assert np.array_equal(px(tmp_path/'a.png', 'RGB', **kw), COLOUR)

def test_sizes(put):
    assert load_image(put(**CT), 32, window='lung').shape==(32,32) and load_image(put(COLOUR), 16, 'pad', 'RGB').shape==(16,16,3)
    assert open_image(put(**CT), size=8).size==(64,64) # reduced decoding is for JPEG files alone
