"use strict";
// The 3-D viewer of a report: unpacks 3Dmol.js from the page itself, draws one chain at a time. Nothing is fetched.
(() => {
  const place = document.getElementById("viewer");
  const data = JSON.parse(document.getElementById("chains").textContent);
  const pick = document.getElementById("pick"), style = document.getElementById("style"), colour = document.getElementById("colour");
  const announce = document.getElementById("announce");
  const ELEMENTS = { C: "#8a939c", N: "#3f6fd8", O: "#d8412f", S: "#c9a227", F: "#4fae62", Cl: "#3b9a4a", Br: "#9a4a2f", Si: "#c08a5c", P: "#d9822b" };
  let viewer = null, starting = false;

  const say = (text) => { place.replaceChildren(Object.assign(document.createElement("p"), { textContent: text })); };

  const ramp = (share) => {
    const at = Math.min(Math.max(share, 0), 1) * (data.ramp.length - 1), k = Math.min(Math.floor(at), data.ramp.length - 2);
    const parts = (text) => [1, 3, 5].map((i) => parseInt(text.slice(i, i + 2), 16));
    const a = parts(data.ramp[k]), b = parts(data.ramp[k + 1]);
    return "#" + a.map((value, i) => Math.round(value + (b[i] - value) * (at - k)).toString(16).padStart(2, "0")).join("");
  };

  const unpack = async () => {
    const packed = Uint8Array.from(atob(document.getElementById("packed").textContent), (c) => c.charCodeAt(0));
    const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
    const script = document.createElement("script");
    script.textContent = await new Response(stream).text();
    document.head.append(script);
  };

  const atoms = (chain) => {
    const bonds = chain.elements.map(() => []);
    for (let k = 0; k < chain.bonds.length; k += 2) {
      bonds[chain.bonds[k]].push(chain.bonds[k + 1]);
      bonds[chain.bonds[k + 1]].push(chain.bonds[k]);
    }
    return chain.elements.map((elem, k) => ({
      elem, serial: k, index: k, bonds: bonds[k], bondOrder: bonds[k].map(() => 1),
      x: chain.xyz[3 * k] / 100, y: chain.xyz[3 * k + 1] / 100, z: chain.xyz[3 * k + 2] / 100,
    }));
  };

  const paint = () => {
    const chain = data.chains[pick.value], last = chain.units ? chain.units[chain.units.length - 1] : chain.elements.length - 1;
    const byUnit = colour.value === "unit";
    const colorfunc = (atom) => byUnit ? ramp((chain.units ? chain.units[atom.serial] : atom.serial) / Math.max(last, 1)) : ELEMENTS[atom.elem] || "#b06fc4";
    const looks = { stick: { stick: { radius: 0.22, colorfunc } }, ball: { stick: { radius: 0.12, colorfunc }, sphere: { scale: 0.25, colorfunc } }, sphere: { sphere: { colorfunc } } };
    viewer.setBackgroundColor(getComputedStyle(place).backgroundColor);
    viewer.setStyle({}, looks[style.value]);
    viewer.render();
  };

  const whole = () => {  // zoomTo fits a sphere into the smaller side; the chain lies along the longer one
    viewer.zoomTo();
    viewer.zoom(Math.min(0.9 * place.clientWidth / place.clientHeight, 1.6));
  };

  const show = () => {
    const chain = data.chains[pick.value];
    viewer.removeAllModels();
    viewer.setView([0, 0, 0, 0, 0, 0, 0, 1]);
    viewer.addModel().addAtoms(atoms(chain));
    whole();
    paint();
    announce.textContent = `Shown: ${chain.name}, ${chain.elements.length} heavy atoms.`;
    const canvas = place.querySelector("canvas");
    if (canvas) { canvas.setAttribute("role", "img"); canvas.setAttribute("aria-label", `${chain.name} in three dimensions`); }
  };

  const start = async () => {
    if (starting) return;
    starting = true;
    if (!("DecompressionStream" in window)) return say("This browser is too old to unpack the viewer; the drawings below show the same chains.");
    if (!document.createElement("canvas").getContext("webgl2") && !document.createElement("canvas").getContext("webgl")) return say("This browser offers no WebGL, so there is no view in 3-D; the drawings below show the same chains.");
    try {
      await unpack();
      place.replaceChildren();
      viewer = window.$3Dmol.createViewer(place, { antialias: true });
      show();
      place.dataset.ready = "yes";
    } catch (error) {
      say(`The viewer could not start (${error.message}); the drawings below show the same chains.`);
    }
  };

  const act = { left: () => viewer.rotate(-20, "y"), right: () => viewer.rotate(20, "y"), up: () => viewer.rotate(-20, "x"), down: () => viewer.rotate(20, "x"), nearer: () => viewer.zoom(1.25), farther: () => viewer.zoom(0.8), whole };
  for (const button of document.querySelectorAll("[data-act]")) {
    button.addEventListener("click", () => { if (viewer) { act[button.dataset.act](); viewer.render(); } });
  }
  pick.addEventListener("change", () => viewer && show());
  for (const choice of [style, colour]) choice.addEventListener("change", () => viewer && paint());
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => viewer && paint());
  let width = place.clientWidth;
  window.addEventListener("resize", () => {
    if (!viewer) return;
    viewer.resize();
    if (place.clientWidth !== width) { width = place.clientWidth; whole(); }  // not where a phone hides its address bar
    viewer.render();
  });
  new IntersectionObserver((seen, observer) => {
    if (seen.some((entry) => entry.isIntersecting)) { observer.disconnect(); start(); }
  }, { rootMargin: "600px" }).observe(place);
})();
