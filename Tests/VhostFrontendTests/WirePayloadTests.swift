// The layouts, against bytes written down by hand from the vhost-user specification.

import Testing
import VhostFrontend

@Suite("Wire layouts") struct WirePayloadTests {
  @Test("a header is id, flags and size")
  func header() {
    let header = WireHeader(request: 0x0102_0304, flags: 0x9, size: 0x28)
    #expect(header.bytes == [4, 3, 2, 1, 9, 0, 0, 0, 0x28, 0, 0, 0])
    #expect(
      WireHeader([0x25, 0, 0, 0, 5, 0, 0, 0, 8, 1, 0, 0]) == WireHeader(request: 37, flags: 5, size: 264))
    #expect(WireHeader.replyFlags == 0x5)
  }

  @Test("a vring state is index and number")
  func state() {
    #expect(WireVringState(index: 3, num: 0x8000_8000).bytes == [3, 0, 0, 0, 0, 0x80, 0, 0x80])
    #expect(WireVringState([1, 0, 0, 0, 2, 1, 0, 0]) == WireVringState(index: 1, num: 258))
  }

  @Test("ring addresses go out as descriptors, used, available, log")
  func address() {
    let address = WireVringAddress(
      index: 2, flags: 1, descriptors: 0x1111_2222_3333_4444, available: 0xa0, used: 0xb0, log: 0xc0)
    #expect(
      address.bytes == [
        2, 0, 0, 0, 1, 0, 0, 0,
        0x44, 0x44, 0x33, 0x33, 0x22, 0x22, 0x11, 0x11,
        0xb0, 0, 0, 0, 0, 0, 0, 0,
        0xa0, 0, 0, 0, 0, 0, 0, 0,
        0xc0, 0, 0, 0, 0, 0, 0, 0,
      ])
  }

  @Test("a memory table counts its regions, and a single one has padding before it")
  func regions() {
    let region = WireRegion(guestAddress: 1, size: 2, userAddress: 3, mmapOffset: 0x0400_0000_0000_0000)
    let bytes: [UInt8] = [
      1, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 4,
    ]
    #expect(region.bytes == bytes)
    #expect(WireRegion.table([region, region]) == [2, 0, 0, 0, 0, 0, 0, 0] + bytes + bytes)
    #expect(WireRegion.table([region], count: 9) == [9, 0, 0, 0, 0, 0, 0, 0] + bytes)
    #expect(region.single == [0, 0, 0, 0, 0, 0, 0, 0] + bytes)
  }

  @Test("configuration, log, inflight and IOTLB have their sizes and places")
  func others() {
    #expect(
      WireConfig(offset: 32, size: 1, flags: 2, piece: [7]).bytes
        == [32, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 7])
    #expect(
      WireLog(size: 0x10, offset: 0x20).bytes == [0x10, 0, 0, 0, 0, 0, 0, 0, 0x20, 0, 0, 0, 0, 0, 0, 0])
    let inflight = WireInflight(mmapSize: 0x40, mmapOffset: 0x1000, queueCount: 2, queueSize: 128)
    let inflightBytes: [UInt8] = [
      0x40, 0, 0, 0, 0, 0, 0, 0, 0, 0x10, 0, 0, 0, 0, 0, 0, 2, 0, 128, 0, 0, 0, 0, 0,
    ]
    #expect(inflight.bytes == inflightBytes)
    #expect(WireInflight(inflightBytes) == inflight)
    let entry = WireIOTLB(iova: 1, size: 2, userAddress: 3, permission: 3, type: 2)
    #expect(entry.bytes.count == 32)
    #expect(Array(entry.bytes[24...]) == [3, 2, 0, 0, 0, 0, 0, 0])
    #expect(WireIOTLB(entry.bytes) == entry)
  }

  @Test("message ids are the specification's")
  func ids() {
    #expect(FrontendRequest.all.map(\.rawValue) == Array(1...45))
    let some: [(FrontendRequest, UInt32)] = [
      (.getFeatures, 1), (.setMemTable, 5), (.setVringNum, 8), (.getVringBase, 11), (.setVringErr, 14),
      (.getQueueNum, 17), (.setBackendReqFD, 21), (.getConfig, 24), (.getInflightFD, 31), (.resetDevice, 34),
      (.getMaxMemSlots, 36), (.remMemReg, 38), (.getStatus, 40), (.checkDeviceState, 43),
      (.getVringBaseSkipDrain, 45),
    ]
    for (request, id) in some { #expect(request.rawValue == id) }
    #expect("\(FrontendRequest.addMemReg)" == "ADD_MEM_REG")
    #expect("\(FrontendRequest(rawValue: 200))" == "request 200")
  }
}
