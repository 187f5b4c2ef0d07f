// Owns the bounds of the bus that core/limits does not name: waits, pings, windows and what one user may hold.

/** A half-open connection is noticed after three intervals: two unanswered pings and the third tick. */
export const pingIntervalMs = 3_000;
export const pingsUnansweredMax = 2;
export const connectTimeoutMs = 5_000;
/** Reconnects start at `reconnectWaitMs` of core/limits and double up to this. */
export const reconnectWaitMsMax = 4_000;
/** After the server has refused the user itself. */
export const refusedWaitMsMax = 30_000;
/** Bytes published that the server has not confirmed reading. */
export const pendingBytesMax = 8_388_608;
export const closeWaitMs = 1_000;
/** Subscriptions of one host's connection. */
export const hostSubscriptionsMax = 64;
export const accountStreamsMax = 16;
export const accountConsumersMax = 64;
export const serverConnectionsMax = 65_536;
export const serverStoreBytesDefault = 4_294_967_296;
/** How long a consumer may hold a message before it comes again, and the wait after its handler threw. */
export const ackWaitMsDefault = 30_000;
export const handlerNakMs = 1_000;
/** Messages fetched ahead of the handler. */
export const fetchMessagesMax = 64;
/** Message ids are not used; the server insists on a window. */
export const duplicateWindowMs = 100;
/** How long one fetch may wait for a message at the server. */
export const fetchExpiresMs = 10_000;
/** How much later than that the consumer gives the fetch up and asks again. */
export const fetchLagMs = 2_000;
