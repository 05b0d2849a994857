-- Upstream filter of one version's cluster. Weighted clusters cannot rewrite paths, so this does.
function envoy_on_request(handle)
  handle:headers():replace(":path", "@PATH@")
end

-- The handler says a status other than 200 in a header: TorchServe closes the connection after any other.
function envoy_on_response(handle)
  local headers = handle:headers()
  local status = headers:get("x-shipway-status")
  if status ~= nil then
    headers:remove("x-shipway-status")
    -- gRPC says its status in trailers; its HTTP status is always 200.
    if headers:get("x-shipway-grpc-status") == nil then headers:replace(":status", status) end
  end
end
