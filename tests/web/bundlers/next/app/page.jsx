"use client";

import { useEffect } from "react";
import { useLevels, useVoiceSession } from "voice-session/react";

export default function Page() {
  const talk = useVoiceSession({ brokerUrl: globalThis.location?.origin ?? "https://voice.example.com", agentId: "elena" });
  const { output } = useLevels(talk);
  useEffect(() => {
    window.complaints ??= [];
    window.session = talk;
    window.startTalk = () => talk.connect().then(() => true);
    window.answers = talk.lines.map(({ text }) => text);
    window.loudest = Math.max(window.loudest ?? 0, output);
  });
  return <p>{talk.state}</p>;
}
