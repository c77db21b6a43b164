/** The microphone on the audio thread: the device's samples as PCM16 at 24 kHz, in chunks of 20 ms. */
export {};
