// The viewer of a report (volumes inside the page) and of `cmt-med view` (volumes from the local server).
//
// It starts where the page has an element with the id "viewer". The cases are JSON: in the element "viewer-cases", or
// at the address that the former's data-cases gives. All text reaches the page as text, never as markup.
import { Niivue, NVImage, SHOW_RENDER, SLICE_TYPE } from "@niivue/niivue";

const REFERENCE_TINT = 0.6; // the reference has the label's colour, mixed with this much white
const KEYS = "n next case, p previous case, e largest error, q prediction, w reference, o outlines, 1 to 9 labels, "
  + "h j k l u d move the cross while the picture has the focus";
const PLANES = {
  "three planes": SLICE_TYPE.MULTIPLANAR,
  axial: SLICE_TYPE.AXIAL,
  coronal: SLICE_TYPE.CORONAL,
  sagittal: SLICE_TYPE.SAGITTAL,
  "3D": SLICE_TYPE.RENDER,
};

function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

function decode(text) {
  return Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0)).buffer;
}

async function answer(address) {
  const response = await fetch(address);
  if (!response.ok) throw new Error((await response.text()).slice(0, 500) || `the server answers ${response.status}`);
  return response;
}

async function bytesOf(source) {
  return source.data ? decode(source.data) : (await answer(source.url)).arrayBuffer();
}

class Viewer {
  constructor(root, content) {
    this.root = root;
    this.labels = content.labels.map((label) => ({ ...label, shown: true }));
    this.cases = content.cases;
    this.layers = {
      reference: { title: "reference", opacity: 0.45, shown: true },
      prediction: { title: "prediction", opacity: 0.55, shown: true },
    };
    this.index = 0;
    this.channel = Infinity; // the last one at first, as in the pictures
    this.request = 0; // of the newest load: an older one that arrives late is dropped
    this.details = null;
    this.nv = new Niivue({
      logLevel: "error",
      loadingText: "",
      dragAndDropEnabled: false,
      isResizeCanvas: true,
      multiplanarShowRender: SHOW_RENDER.NEVER,
      multiplanarForceRender: false,
      crosshairWidth: 0.4,
      crosshairWidthUnit: "percent",
      crosshairColor: [1, 1, 0, 0.7],
      // their letters are the viewer's own
      clipPlaneHotKey: "",
      cycleClipPlaneHotKey: "",
      viewModeHotKey: "",
    });
  }

  async start() {
    this.build();
    await this.nv.attachToCanvas(this.canvas);
    this.nv.onLocationChange = (where) => { this.location.textContent = where.string; };
    document.addEventListener("keydown", (event) => this.onKey(event));
    for (const button of document.querySelectorAll("button[data-case]")) {
      button.addEventListener("click", () => {
        this.show(Number(button.dataset.case));
        this.root.scrollIntoView({ block: "start" });
      });
    }
    await this.show(0);
  }

  // ---- the page

  build() {
    this.canvas = element("canvas", { tabIndex: 0, className: "volume" });
    this.canvas.setAttribute("aria-label", "Image with prediction and reference");
    this.status = element("p", { className: "status" });
    this.status.setAttribute("role", "status");
    this.location = element("p", { className: "location" });
    this.channelPicker = element("select");
    this.channelPicker.addEventListener("change", () => {
      this.channel = this.channelPicker.selectedIndex;
      this.show(this.index, { keepPlace: true });
    });
    this.casePicker = element("select");
    for (const one of this.cases) this.casePicker.append(element("option", { textContent: one.title }));
    this.casePicker.addEventListener("change", () => this.show(this.casePicker.selectedIndex));
    this.root.replaceChildren(
      element("div", { className: "controls" }, ...this.caseControls()),
      element("div", { className: "controls" }, ...this.layerControls()),
      element("div", { className: "controls" }, ...this.labelControls()),
      this.status,
      element("div", { className: "stage" }, this.canvas),
      this.location,
      element("p", { className: "hint", textContent: `Keys: ${KEYS}.` }),
    );
  }

  caseControls() {
    const planes = element("select");
    for (const name of Object.keys(PLANES)) planes.append(element("option", { textContent: name }));
    planes.addEventListener("change", () => this.nv.setSliceType(PLANES[planes.value]));
    return [
      this.button("previous", "previous case", () => this.step(-1)),
      element("label", {}, "case ", this.casePicker),
      this.button("next", "next case", () => this.step(1)),
      this.button("error", "largest error", () => this.jump()),
      element("label", {}, "view ", planes),
      element("label", {}, "image ", this.channelPicker),
    ];
  }

  layerControls() {
    const controls = Object.entries(this.layers).flatMap(([name, layer]) => {
      layer.box = element("input", { type: "checkbox", checked: true, id: `viewer-${name}` });
      layer.box.addEventListener("change", () => { layer.shown = layer.box.checked; this.fade(); });
      const slider = element("input", { type: "range", min: 0, max: 1, step: 0.05, value: layer.opacity });
      slider.id = `viewer-${name}-opacity`;
      slider.setAttribute("aria-label", `opacity of the ${name}`);
      slider.addEventListener("input", () => { layer.opacity = Number(slider.value); this.fade(); });
      return [element("label", {}, layer.box, ` ${layer.title}`), slider];
    });
    this.outlines = element("input", { type: "checkbox", id: "viewer-outlines" });
    this.outlines.addEventListener("change", () => this.nv.setAtlasOutline(this.outlines.checked ? 1 : 0));
    return [...controls, element("label", {}, this.outlines, " outlines")];
  }

  labelControls() {
    return this.labels.map((label, i) => {
      label.box = element("input", { type: "checkbox", checked: true, id: `viewer-label-${i}` });
      label.box.addEventListener("change", () => { label.shown = label.box.checked; this.paint(); });
      const swatches = [0, REFERENCE_TINT].map((tint) => {
        const swatch = element("span", { className: "swatch" });
        swatch.style.backgroundColor = `rgb(${tinted(label.colour, tint).join(",")})`;
        return swatch;
      });
      return element("label", {}, label.box, " ", ...swatches, " ", element("bdi", { textContent: label.name }));
    });
  }

  button(name, text, action) {
    const made = element("button", { type: "button", textContent: text, id: `viewer-${name}` });
    made.addEventListener("click", action);
    return made;
  }

  onKey(event) {
    const typing = event.target.closest?.("select, input[type=text], textarea");
    if (event.ctrlKey || event.altKey || event.metaKey || typing) return;
    const actions = {
      n: () => this.step(1),
      p: () => this.step(-1),
      e: () => this.jump(),
      q: () => this.layers.prediction.box.click(),
      w: () => this.layers.reference.box.click(),
      o: () => this.outlines.click(),
    };
    if (event.target === this.canvas) { // h j k l are NiiVue's; its u and d want Ctrl, which is the browser's
      actions.u = () => this.nv.moveCrosshairInVox(0, 0, 1);
      actions.d = () => this.nv.moveCrosshairInVox(0, 0, -1);
    }
    const action = actions[event.key] ?? (/^[1-9]$/.test(event.key)
      ? () => this.labels[Number(event.key) - 1]?.box.click() : undefined);
    if (action) action();
  }

  // ---- volumes

  step(by) {
    return this.show((this.index + by + this.cases.length) % this.cases.length);
  }

  async show(index, { keepPlace = false } = {}) {
    const request = ++this.request;
    this.root.dataset.state = "loading";
    this.index = index;
    this.casePicker.selectedIndex = index;
    const one = this.cases[index];
    this.status.textContent = `loading ${one.title}`;
    try {
      const details = one.details ?? (await (await answer(one.url)).json());
      const volumes = await this.load(details);
      if (request !== this.request) return;
      const place = keepPlace ? [...this.nv.scene.crosshairPos] : null;
      while (this.nv.volumes.length) this.nv.removeVolume(this.nv.volumes[0]);
      for (const volume of volumes) this.nv.addVolume(volume);
      this.details = details;
      this.listChannels(details.images.map((image) => image.name));
      this.paint();
      this.fade();
      if (place) this.nv.scene.crosshairPos = place;
      else this.jump();
      this.nv.drawScene();
      this.status.textContent = [one.title, ...(details.notes ?? [])].join(" · ");
      this.root.dataset.case = String(index);
      this.root.dataset.state = "ready";
    } catch (error) {
      if (request !== this.request) return;
      this.status.textContent = `${one.title} cannot be shown: ${error.message}`;
      this.root.dataset.case = String(index);
      this.root.dataset.state = "failed";
    }
  }

  async load(details) {
    this.channel = Math.min(this.channel, details.images.length - 1);
    const image = details.images[this.channel];
    const made = [await volume(await bytesOf(image), "image")];
    for (const [name, layer] of Object.entries(this.layers)) {
      layer.volume = details[name] ? await volume(await bytesOf(details[name]), name) : null;
      layer.box.disabled = !layer.volume;
      if (layer.volume) made.push(layer.volume);
    }
    return made;
  }

  listChannels(names) {
    this.channelPicker.replaceChildren(...names.map((name) => element("option", { textContent: name })));
    this.channelPicker.selectedIndex = this.channel;
    this.channelPicker.disabled = names.length < 2;
  }

  paint() {
    for (const [name, layer] of Object.entries(this.layers)) {
      if (!layer.volume) continue;
      const tint = name === "reference" ? REFERENCE_TINT : 0;
      const colours = this.labels.map((label) => tinted(label.colour, tint));
      layer.volume.setColormapLabel({
        R: [0, ...colours.map((colour) => colour[0])],
        G: [0, ...colours.map((colour) => colour[1])],
        B: [0, ...colours.map((colour) => colour[2])],
        A: [0, ...this.labels.map((label) => (label.shown ? 255 : 0))],
        I: [0, ...this.labels.map((label) => label.value)],
        labels: ["", ...this.labels.map((label) => `${name}: ${label.name}`)],
      });
    }
    this.nv.updateGLVolume();
  }

  fade() {
    for (const layer of Object.values(this.layers)) {
      const position = this.nv.volumes.indexOf(layer.volume);
      if (position > 0) this.nv.setOpacity(position, layer.shown ? layer.opacity : 0);
    }
    this.root.dataset.opacity = Object.values(this.layers).map((one) => (one.shown ? one.opacity : 0)).join(" ");
  }

  jump() {
    if (!this.details?.error) return;
    this.nv.scene.crosshairPos = this.nv.mm2frac(this.details.error);
    this.nv.createOnLocationChange();
    this.nv.drawScene();
  }
}

function tinted(colour, tint) {
  return colour.map((part) => Math.round(part + (255 - part) * tint));
}

async function volume(bytes, name) {
  return NVImage.new(bytes, `${name}.nii`, "gray", 1.0);
}

async function start() {
  const root = document.getElementById("viewer");
  if (!root) return;
  try {
    if (!document.createElement("canvas").getContext("webgl2")) {
      throw new Error("this browser has no WebGL2, which the viewer needs");
    }
    const inside = document.getElementById("viewer-cases");
    const content = inside ? JSON.parse(inside.textContent) : await (await answer(root.dataset.cases)).json();
    if (!content.cases.length) throw new Error("there are no cases");
    await new Viewer(root, content).start();
  } catch (error) {
    root.replaceChildren(element("p", { className: "status", textContent: `No viewer: ${error.message}` }));
    root.dataset.state = "failed";
  }
}

start();
