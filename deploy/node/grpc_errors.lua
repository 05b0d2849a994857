-- Between the router and the reverse bridge, on gRPC calls alone: the bridge accepts nothing but protobuf, so answers
-- that are none (TorchServe's JSON errors, Envoy's own) become empty protobuf with their status in headers.
function envoy_on_response(handle)
  local headers = handle:headers()
  local grpc_status = headers:get("grpc-status") -- one of Envoy's own answers
  if grpc_status ~= nil then
    headers:replace("x-shipway-grpc-status", grpc_status)
    headers:replace("x-shipway-grpc-message", headers:get("grpc-message") or "")
    headers:remove("grpc-status")
    headers:remove("grpc-message")
    headers:replace("content-type", "application/x-protobuf")
    return
  end
  local code = headers:get(":status")
  if code ~= "200" and headers:get("x-shipway-grpc-status") == nil then
    local status = {["404"] = "5", ["413"] = "8", ["500"] = "13", ["503"] = "14", ["507"] = "13"}
    local died = "the worker died on this request or on one beside it in its batch"
    local message = {
      ["500"] = died,
      ["507"] = died, -- TorchServe says the one or the other, as it happens to notice
      ["503"] = "the model's queue is full, or it has no worker; try again later",
    }
    headers:replace("x-shipway-grpc-status", status[code] or "2")
    headers:replace("x-shipway-grpc-message", message[code] or ("the node answered " .. code))
    headers:replace("content-type", "application/x-protobuf")
  end
end
