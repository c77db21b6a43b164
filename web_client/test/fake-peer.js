/** A peer connection and a socket that tests speak through, for the transports that carry media over WebRTC. */

export class FakeChannel {
  readyState = "connecting";
  sent = [];

  constructor(label) {
    this.label = label;
  }

  open() {
    this.readyState = "open";
    this.onopen?.();
  }

  says(event) {
    this.onmessage?.({ data: JSON.stringify(event) });
  }

  send(text) {
    this.sent.push(JSON.parse(text));
  }

  shut() {
    this.readyState = "closed";
    this.onclose?.();
  }
}

export class FakePeer {
  /** What the peers of a test do by themselves. */
  static gathers = true;
  static connects = true;
  static opens = true;
  static made = [];
  connectionState = "new";
  iceGatheringState = "new";
  localDescription = null;
  lines = [];
  received = 0;

  constructor() {
    FakePeer.made.push(this);
  }

  createDataChannel = (label) => (this.channel = new FakeChannel(label));
  addTransceiver = (kind, { direction }) => void this.lines.push(`${kind} ${direction}`);
  addTrack = (track) => void this.lines.push(`${track.kind} track`);
  getSenders = () => [];
  getStats = async () => new Map([["pair", { type: "candidate-pair", bytesReceived: this.received }]]);
  addEventListener() {}

  async setLocalDescription() {
    this.localDescription = { sdp: "v=0 without candidates" };
    if (FakePeer.gathers) queueMicrotask(() => this.gather());
  }

  gather() {
    this.localDescription = { sdp: "v=0 with candidates" };
    this.iceGatheringState = "complete";
    this.onicegatheringstatechange?.();
  }

  async setRemoteDescription({ sdp }) {
    this.answer = sdp;
    if (FakePeer.connects) this.is("connected");
    if (FakePeer.opens) this.channel.open();
  }

  is(state) {
    this.connectionState = state;
    this.onconnectionstatechange?.();
  }

  close() {
    this.closed = true;
  }
}

export class FakeSocket {
  static OPEN = 1;
  static made = [];
  readyState = 0;
  bufferedAmount = 0;
  sent = [];

  constructor(url, protocols) {
    Object.assign(this, { url, protocols });
    FakeSocket.made.push(this);
    queueMicrotask(() => this.opens());
  }

  opens() {
    this.readyState = FakeSocket.OPEN;
    this.onopen?.();
  }

  send(text) {
    this.sent.push(JSON.parse(text));
  }

  says(event) {
    this.onmessage?.({ data: JSON.stringify(event) });
  }

  close(code) {
    this.closedWith = code;
  }
}

/** What the page's sound is asked to do, in order. */
export function fakeAudio(done = []) {
  const note = (name) => (given) => void done.push(typeof given === "boolean" ? `${name} ${given}` : name);
  return { microphone: null, done, silence: () => null, attachRemote: note("attach"), detachRemote: note("detach"), muteRemote: note("mute") };
}

/** Lets what is settled already go on. */
export async function settle(turns = 30) {
  for (let turn = 0; turn < turns; turn += 1) await Promise.resolve();
}
