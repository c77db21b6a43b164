/** From a plan's connection to the transport that carries it. */
/**
 * @param {import("./transport.js").TransportContext} context
 * @returns {import("./transport.js").Transport}
 */
export declare function createTransport(context: import("./transport.js").TransportContext): import("./transport.js").Transport;
