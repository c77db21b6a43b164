/** Which rates the worklets can resample. The page asks before it makes them. */

export const WIRE_RATE = 24_000;
const MAX_PHASES = 1024;

/**
 * Whether the worklets can go from one rate to the other (both in Hz).
 * @param {number} inputRate
 * @param {number} outputRate
 */
export function canResample(inputRate, outputRate) {
  return (
    Number.isInteger(inputRate) &&
    Number.isInteger(outputRate) &&
    inputRate > 0 &&
    outputRate > 0 &&
    outputRate / gcd(inputRate, outputRate) <= MAX_PHASES
  );
}

/**
 * @param {number} a
 * @param {number} b
 * @returns {number}
 */
function gcd(a, b) {
  return b === 0 ? a : gcd(b, a % b);
}
