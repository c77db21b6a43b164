import "./complaints.js";
import { VoiceSession } from "voice-session";
import "voice-session/voice-talk";

const element = document.querySelector("voice-talk");
window.loudest = 0;
window.answers = [];
window.startTalk = async () => {
  await element.talk();
  window.session = element.session;
  element.addEventListener("transcript", ({ detail }) => answers.push(detail.text));
  element.addEventListener("level", ({ detail }) => {
    window.loudest = Math.max(window.loudest, detail.output);
  });
  return element.session instanceof VoiceSession; // one copy of the class is in the bundle
};
