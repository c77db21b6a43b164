/**
 * A streaming, band-limited resampler: polyphase windowed sinc (Kaiser), for ratios of at most 1,024 phases.
 *
 * Flat to 10/12 of the lower rate's Nyquist frequency (10 kHz where 24 kHz is the lower rate), and 80 dB down above that
 * Nyquist frequency, so that aliases are inaudible.
 */
/**
 * Whether `Resampler` can go from one rate to the other (both in Hz).
 * @param {number} inputRate
 * @param {number} outputRate
 */
export declare function canResample(inputRate: number, outputRate: number): boolean;
export declare class Resampler {
    #private;
    /**
     * @param {number} inputRate in Hz
     * @param {number} outputRate in Hz
     * @throws {RangeError} where `canResample` is false
     */
    constructor(inputRate: number, outputRate: number);
    /** The filter's group delay, in input samples. */
    get delaySamples(): number;
    /**
     * Takes the next samples of the stream, and returns the output that they complete.
     * @param {Float32Array} input
     * @returns {Float32Array}
     */
    process(input: Float32Array): Float32Array;
    /**
     * How many input samples `process` needs next to give at least `count` output samples.
     * @param {number} count
     */
    inputNeededFor(count: number): number;
}
