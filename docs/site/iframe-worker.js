// Search of a site that is opened from the disk: a browser starts no worker from a file, so the worker's script runs in
// a hidden frame of the page instead. On a server nothing is changed.
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(place) {
      super()
      const url = new URL(place, location.href).href
      const queue = []
      this.frame = Object.assign(document.createElement("iframe"), { hidden: true })
      this.ready = new Promise(resolve => { this.frame.onload = resolve })
      document.body.append(this.frame)
      const inside = this.frame.contentWindow
      inside.document.open()
      inside.document.write(`<base href="${url}"><body></body>`)
      inside.document.close()
      inside.importScripts = (...urls) => Promise.all(urls.map(one => this.load(one)))
      inside.postMessage = data => {
        const event = new MessageEvent("message", { data })
        this.dispatchEvent(event)
        this.onmessage?.(event)
      }
      this.started = this.load(url).then(() => queue.splice(0).forEach(data => this.deliver(data)))
      this.queue = queue
      this.started.then(() => { this.queue = undefined })
    }

    load(url) {
      return new Promise((resolve, reject) => {
        const script = this.frame.contentDocument.createElement("script")
        Object.assign(script, { src: url, onload: resolve, onerror: reject })
        this.frame.contentDocument.body.append(script)
      })
    }

    deliver(data) {
      this.frame.contentWindow.dispatchEvent(new MessageEvent("message", { data }))
    }

    postMessage(data) {
      if (this.queue) this.queue.push(data)
      else this.deliver(data)
    }

    terminate() {
      this.frame.remove()
    }
  }
}
