// Uploading in chunks, dropping folders, and the keys of the review. Without this file every form still works.
'use strict'
document.documentElement.classList.add('js')
const one = s => document.querySelector(s)

// -- upload: as many files a request as fit, so that thousands go up, each request is small, and a broken line loses one of them
const MOST = 100
let busy = false
function chunks(files, max) {
  const out = [], big = []
  let part = [], size = 0
  for (const f of files) {
    if (f.file.size > max) { big.push(f.name); continue }
    if (part.length && (part.length >= MOST || size + f.file.size > Math.min(max, 32 * 2 ** 20))) { out.push(part); part = []; size = 0 }
    part.push(f); size += f.file.size
  }
  if (part.length) out.push(part)
  return [out, big]
}

async function send(files) {
  const form = one('#upload')
  if (busy || !files.length) return
  busy = true
  // a tenth less than the server takes: names and borders count, too
  const [parts, big] = chunks(files, form.dataset.maxRequest * .9), all = files.length, bytes = files.reduce((n, f) => n + f.file.size, 0) || 1
  let done = 0, before = 0
  one('#sending').hidden = false
  const tell = (now = 0) => {
    one('#bar').value = Math.min(1, (before + now) / bytes)
    one('#sent').textContent = form.dataset.some.replace('{done}', done).replace('{all}', all)
  }
  const progress = e => tell(Math.min(e.detail.loaded, e.detail.total))
  const chunk = one('#chunk')
  chunk.addEventListener('htmx:xhr:progress', progress)
  let failed = false
  try {
    for (const part of parts) {
      tell()
      const data = new FormData()
      data.append('csrf_token', form.elements.csrf_token.value)
      for (const f of part) { data.append('files', f.file); data.append('names', f.name) }
      let ok = false
      const after = e => { ok = e.detail.successful }
      chunk.addEventListener('htmx:afterRequest', after)
      await htmx.ajax('POST', form.action, { source: '#chunk', target: '#progress', swap: 'outerHTML', values: data })
      chunk.removeEventListener('htmx:afterRequest', after)
      if (!ok) { failed = true; break }
      done += part.length
      before += part.reduce((n, f) => n + f.file.size, 0)
    }
  } finally {
    chunk.removeEventListener('htmx:xhr:progress', progress)
    busy = false
    for (const o of form.querySelectorAll('input[type=file]')) o.value = ''
    const words = [failed ? form.dataset.failed : '', big.length ? form.dataset.big + ' ' + big.join(', ') : ''].filter(Boolean).join(' ')
    if (words) one('#sent').textContent = words
    else one('#sending').hidden = true
  }
}

// a dropped folder is walked through; the browser gives its names a hundred at a time
async function walk(entry, path, out) {
  if (entry.isFile) out.push({ file: await new Promise((y, n) => entry.file(y, n)), name: path + entry.name })
  else if (entry.isDirectory) {
    const reader = entry.createReader()
    for (;;) {
      const some = await new Promise((y, n) => reader.readEntries(y, n))
      if (!some.length) break
      for (const o of some) await walk(o, path + entry.name + '/', out)
    }
  }
}

function ready() {
  const form = one('#upload')
  if (!form) return
  for (const o of form.querySelectorAll('input[type=file]')) o.addEventListener('change', () => send([...o.files].map(f => ({ file: f, name: f.webkitRelativePath || f.name }))))
  form.addEventListener('submit', e => e.preventDefault())
  for (const k of ['dragenter', 'dragover']) form.addEventListener(k, e => { e.preventDefault(); form.classList.add('over') })
  for (const k of ['dragleave', 'drop']) form.addEventListener(k, e => { if (k === 'drop' || !form.contains(e.relatedTarget)) form.classList.remove('over') })
  form.addEventListener('drop', async e => {
    e.preventDefault()
    const entries = [...e.dataTransfer.items].map(o => o.webkitGetAsEntry && o.webkitGetAsEntry()).filter(Boolean), out = []
    if (entries.length) for (const o of entries) await walk(o, '', out)
    else for (const f of e.dataTransfer.files) out.push({ file: f, name: f.name })
    send(out)
  })
  // a file that misses the field must not replace the page
  for (const k of ['dragover', 'drop']) window.addEventListener(k, e => e.preventDefault())
}

// -- keys: never while somebody writes, never with Ctrl and the like
document.addEventListener('keydown', e => {
  if (e.ctrlKey || e.metaKey || e.altKey || /^(INPUT|TEXTAREA|SELECT)$/.test(e.target.tagName) && e.target.type !== 'checkbox') return
  const key = e.key.length === 1 ? e.key.toLowerCase() : e.key
  const go = { ArrowLeft: '#before', ArrowRight: '#after', z: '#undo' }[key]
  const o = go ? one(go) : /^[1-9u]$/.test(key) ? one(`[data-key="${key}"]`) : key === 'Enter' && e.target.tagName !== 'BUTTON' && e.target.tagName !== 'A' && e.target.tagName !== 'SUMMARY' ? one('[data-key="Enter"]') : null
  if (o) { e.preventDefault(); o.click() }
})
document.addEventListener('DOMContentLoaded', ready)
