/** The microphone, on the audio thread: whatever the device gives, as PCM16 at 24 kHz, in chunks of 20 ms. */
export {};
