// The container app: every secret a Key Vault reference read as the broker's own identity, platform authentication and
// BROKER_AUTH set by one parameter, ingress for long WebSockets, probes, drain, scale.

@description('Region of the Container Apps environment.')
param location string

@description('Name of the environment; azd finds the app by it.')
param environmentName string

@description('Image to run.')
param image string

@description('Who may ask for tokens; decides the platform\'s authentication too.')
@allowed([
  'none'
  'easyauth'
  'entra'
])
param brokerAuth string

@description('With easyauth: client id of the app registration.')
param easyAuthClientId string

@description('With easyauth and entra: the tenant.')
param entraTenantId string

@description('With entra: the audience.')
param entraAudience string

@description('With entra: the scope or app role; empty asks for none.')
param entraRequiredScope string

@description('IPv4 ranges that may reach the broker, separated by commas; empty means everywhere.')
param allowedAddresses string

@description('Region of the voice resource.')
@allowed([
  'canadacentral'
  'centralus'
  'eastus2'
  'francecentral'
  'swedencentral'
  'southindia'
])
param voiceLocation string

@description('Whether there is a second voice resource, and whether it takes talks as the first does.')
@allowed([
  'none'
  'standby'
  'shared'
])
param secondVoice string

@description('Region of the second voice resource.')
@allowed([
  'canadacentral'
  'centralus'
  'eastus2'
  'francecentral'
  'swedencentral'
  'southindia'
])
param secondVoiceLocation string

@description('Further tables of the resources file.')
param moreResources string

@description('New Voice Live connections a minute of each resource; 0: not known.')
param voiceLivePerMinute int

@description('How the broker proves itself to the voice resources.')
@allowed([
  'key'
  'entra'
])
param voiceAuthentication string

@description('Where turns are kept.')
@allowed([
  'postgresql'
  'sqlite'
])
param store string

@description('Where else turns go.')
@allowed([
  'local'
  'zep'
  'zep_cloud'
])
param memory string

@description('Zep\'s base URL where it is not the cloud.')
param zepApiUrl string

@description('Realtime deployment.')
param realtimeDeployment string

@description('Transcription deployment.')
param transcriptionDeployment string

@description('AI Foundry project, if there is one.')
param projectName string

@description('api-version of the flat mints and of Voice Live.')
param voiceApiVersion string

@description('URL that browsers reach the broker by; empty means the app\'s own name.')
param publicUrl string

@description('Origins of other sites that may embed the client.')
param allowedOrigins string

@description('Replicas at least.')
param minReplicas int

@description('Replicas at most.')
param maxReplicas int

@description('CPU cores of a replica.')
param cpu string

@description('Talks that a replica is meant to carry.')
param talksPerReplica int

@description('Grace for running talks when a replica is told to stop.')
param drainSeconds int

// What main.bicep made, by the names it gave.
var suffix = uniqueString(resourceGroup().id)
var appName = 'token-broker'
var port = 8080

// The platform takes these pairs alone.
var memoryOfCpu = {
  '0.25': '0.5Gi'
  '0.5': '1Gi'
  '1.0': '2Gi'
}
var withKey = voiceAuthentication == 'key'
var withZep = memory != 'local'
var withSecond = secondVoice != 'none'
var pooled = withSecond || !empty(moreResources)
var addressList = replace(allowedAddresses, ' ', '')
var addresses = empty(addressList) ? [] : split(addressList, ',')

// Where nobody is asked who they are, the ingress is external for named addresses alone.
var restricted = !empty(addresses) && !contains(addressList, '/0')
var external = brokerAuth != 'none' || restricted
var hostLabel = external ? appName : '${appName}.internal'

// https://learn.microsoft.com/azure/templates/microsoft.managedidentity/2024-11-30/userassignedidentities
resource identity 'Microsoft.ManagedIdentity/userAssignedIdentities@2024-11-30' existing = {
  name: 'id-${suffix}'
}

// https://learn.microsoft.com/azure/templates/microsoft.keyvault/2026-02-01/vaults
resource vault 'Microsoft.KeyVault/vaults@2026-02-01' existing = {
  name: 'kv-${suffix}'
}

// https://learn.microsoft.com/azure/templates/microsoft.cognitiveservices/2025-06-01/accounts
resource voiceAccount 'Microsoft.CognitiveServices/accounts@2025-06-01' existing = {
  name: 'voice-${suffix}'
}

// https://learn.microsoft.com/azure/templates/microsoft.containerregistry/2025-11-01/registries
resource registry 'Microsoft.ContainerRegistry/registries@2025-11-01' existing = {
  name: 'cr${suffix}'
}

// https://learn.microsoft.com/azure/templates/microsoft.app/2025-07-01/managedenvironments
resource apps 'Microsoft.App/managedEnvironments@2025-07-01' existing = {
  name: 'cae-${suffix}'
}

var voiceKeySecrets = [
  {
    name: 'voicelive-api-key'
    keyVaultUrl: '${vault.properties.vaultUri}secrets/voicelive-api-key'
    identity: identity.id
  }
]

var otherVoiceKeySecrets = [
  {
    name: 'voicelive-api-key-2'
    keyVaultUrl: '${vault.properties.vaultUri}secrets/voicelive-api-key-2'
    identity: identity.id
  }
]

var zepSecrets = [
  {
    name: 'zep-api-key'
    keyVaultUrl: '${vault.properties.vaultUri}secrets/zep-api-key'
    identity: identity.id
  }
]

var brokerSecrets = [
  {
    name: 'broker-database-url'
    keyVaultUrl: '${vault.properties.vaultUri}secrets/broker-database-url'
    identity: identity.id
  }
  {
    name: 'broker-signing-key'
    keyVaultUrl: '${vault.properties.vaultUri}secrets/broker-signing-key'
    identity: identity.id
  }
  {
    name: 'broker-metrics-token'
    keyVaultUrl: '${vault.properties.vaultUri}secrets/broker-metrics-token'
    identity: identity.id
  }
]

// The labels that agents' `zones` name: where a resource is, not where a Global deployment processes.
var zones = {
  canadacentral: 'ca'
  centralus: 'us'
  eastus2: 'us'
  francecentral: 'eu'
  southindia: 'in'
  swedencentral: 'eu'
}

var secondName = secondVoiceLocation == voiceLocation ? '${secondVoiceLocation}-2' : secondVoiceLocation

var projectLines = empty(projectName) ? [] : ['project = "${projectName}"']

var firstLines = [
  '[[resources]]'
  'name = "${voiceLocation}"'
  'endpoint = "https://${voiceAccount.name}.services.ai.azure.com"'
  withKey ? 'key_env = "AZURE_KEY_VOICE"' : 'auth = "entra"'
  'zone = "${zones[voiceLocation]}"'
  'voice_live_per_minute = ${voiceLivePerMinute}'
]

var secondLines = [
  '[[resources]]'
  'name = "${secondName}"'
  'endpoint = "https://voice2-${suffix}.services.ai.azure.com"'
  withKey ? 'key_env = "AZURE_KEY_VOICE2"' : 'auth = "entra"'
  'zone = "${zones[secondVoiceLocation]}"'
  'voice_live_per_minute = ${voiceLivePerMinute}'
  'priority = ${secondVoice == 'standby' ? 2 : 1}'
]

// BROKER_RESOURCES_FILE. The platform gives an app a file only as a mounted secret; nothing in this one is secret.
var resourcesText = join(
  concat(firstLines, projectLines, withSecond ? concat(secondLines, projectLines) : [], [moreResources]),
  '\n'
)

// A changed secret alone makes no new revision, and replicas would keep the former file. So the file's name changes, too.
var resourcesFile = 'resources-${uniqueString(resourcesText)}.toml'
var resourcesPath = '/etc/token-broker'

var resourcesSecrets = [
  {
    name: 'resources-file'
    value: resourcesText
  }
]

var secrets = concat(
  brokerSecrets,
  withKey ? voiceKeySecrets : [],
  withKey && withSecond ? otherVoiceKeySecrets : [],
  withZep ? zepSecrets : [],
  pooled ? resourcesSecrets : []
)

var voiceKeyEnv = [
  {
    name: pooled ? 'AZURE_KEY_VOICE' : 'AZURE_VOICELIVE_KEY'
    secretRef: 'voicelive-api-key'
  }
]

var otherVoiceKeyEnv = [
  {
    name: 'AZURE_KEY_VOICE2'
    secretRef: 'voicelive-api-key-2'
  }
]

var singleEnv = [
  {
    name: 'AZURE_VOICELIVE_ENDPOINT'
    value: 'https://${voiceAccount.name}.services.ai.azure.com' // No trailing slash
  }
  {
    name: 'AZURE_VOICELIVE_PROJECT_NAME'
    value: projectName
  }
  {
    // auto: the key first, Entra when keys are switched off.
    name: 'AZURE_VOICELIVE_AUTH'
    value: withKey ? 'auto' : 'entra'
  }
]

var poolEnv = [
  {
    name: 'BROKER_RESOURCES_FILE'
    value: '${resourcesPath}/${resourcesFile}'
  }
]

var zepEnv = [
  {
    name: 'BROKER_MEMORY_SINKS'
    value: memory
  }
  {
    name: 'ZEP_API_KEY'
    secretRef: 'zep-api-key'
  }
  {
    name: 'ZEP_API_URL'
    value: zepApiUrl
  }
]

// An empty value counts as unset with the broker, so what is optional may stand here empty.
var brokerEnv = [
  {
    name: 'HOST'
    value: '0.0.0.0'
  }
  {
    name: 'PORT'
    value: string(port)
  }
  {
    name: 'AZURE_VOICELIVE_MODEL'
    value: realtimeDeployment
  }
  {
    name: 'AZURE_VOICELIVE_API_VERSION'
    value: voiceApiVersion
  }
  {
    name: 'AZURE_VOICELIVE_TRANSCRIPTION_MODEL'
    value: transcriptionDeployment
  }
  {
    // The user-assigned identity, for the voice resources and for PostgreSQL.
    name: 'AZURE_CLIENT_ID'
    value: identity.properties.clientId
  }
  {
    name: 'BROKER_AUTH'
    value: brokerAuth
  }
  {
    name: 'BROKER_ENTRA_TENANT_ID'
    value: entraTenantId
  }
  {
    name: 'BROKER_ENTRA_AUDIENCE'
    value: entraAudience
  }
  {
    name: 'BROKER_ENTRA_REQUIRED_SCOPE'
    value: entraRequiredScope
  }
  {
    name: 'BROKER_DATABASE_URL'
    secretRef: 'broker-database-url'
  }
  {
    name: 'BROKER_SIGNING_KEY'
    secretRef: 'broker-signing-key'
  }
  {
    name: 'BROKER_METRICS_TOKEN'
    secretRef: 'broker-metrics-token'
  }
  {
    // Who PostgreSQL's certificate must be signed by: Debian's own list of authorities.
    name: 'PGSSLROOTCERT'
    value: '/etc/ssl/certs/ca-certificates.crt'
  }
  {
    // The broker answers under this name and no other.
    name: 'BROKER_PUBLIC_URL'
    value: empty(publicUrl) ? 'https://${hostLabel}.${apps.properties.defaultDomain}' : publicUrl
  }
  {
    // The environment's own ingress is the one hop before the broker.
    name: 'BROKER_TRUSTED_PROXIES'
    value: '1'
  }
  {
    name: 'BROKER_ALLOWED_ORIGINS'
    value: allowedOrigins
  }
  {
    name: 'BROKER_MAX_SESSIONS'
    value: string(talksPerReplica * 2)
  }
  {
    name: 'BROKER_DRAIN_S'
    value: string(drainSeconds)
  }
  {
    name: 'BROKER_LOG_FORMAT'
    value: 'json'
  }
]

var env = concat(
  brokerEnv,
  pooled ? poolEnv : singleEnv,
  withKey ? voiceKeyEnv : [],
  withKey && withSecond ? otherVoiceKeyEnv : [],
  withZep ? zepEnv : []
)

var stateMount = [
  {
    volumeName: 'state'
    mountPath: '/var/lib/token-broker'
  }
]

var resourcesMount = [
  {
    volumeName: 'resources'
    mountPath: resourcesPath
  }
]

var stateVolume = [
  {
    // Goes with the replica. Only sqlite keeps anything in it, and that is for trying out.
    name: 'state'
    storageType: 'EmptyDir'
  }
]

var resourcesVolume = [
  {
    name: 'resources'
    storageType: 'Secret'
    secrets: [
      {
        secretRef: 'resources-file'
        path: resourcesFile
      }
    ]
  }
]

// https://learn.microsoft.com/azure/templates/microsoft.app/2025-07-01/containerapps
resource broker 'Microsoft.App/containerApps@2025-07-01' = {
  name: appName
  location: location
  tags: {
    'azd-env-name': environmentName
    'azd-service-name': 'broker'
  }
  identity: {
    type: 'UserAssigned'
    userAssignedIdentities: {
      '${identity.id}': {}
    }
  }
  properties: {
    environmentId: apps.id
    workloadProfileName: 'Consumption'
    configuration: {
      // A new revision gets the traffic once it is ready; then the old one's replicas are told to stop, and drain.
      activeRevisionsMode: 'Single'
      maxInactiveRevisions: 10
      identitySettings: [
        {
          identity: identity.id
          lifecycle: 'Main'
        }
      ]
      registries: [
        {
          server: registry.properties.loginServer
          identity: identity.id
        }
      ]
      secrets: secrets
      ingress: {
        external: external
        // As soon as one range is allowed, all others are not.
        ipSecurityRestrictions: [
          for address in addresses: {
            name: 'allow-${uniqueString(address)}'
            action: 'Allow'
            ipAddressRange: address
          }
        ]
        targetPort: port
        // HTTP/1.1 is what WebSockets are made on. The ingress drops what is silent for 240 s; the broker pings every 20 s.
        transport: 'http'
        allowInsecure: false
        clientCertificateMode: 'ignore'
        // Any replica can serve any request: tickets and session tokens are enough by themselves.
        stickySessions: {
          affinity: 'none'
        }
        traffic: [
          {
            latestRevision: true
            weight: 100
          }
        ]
      }
    }
    template: {
      // The drain, and ten seconds to flush the last turns and to close.
      terminationGracePeriodSeconds: drainSeconds + 10
      containers: [
        {
          name: 'broker'
          image: image
          env: env
          resources: {
            cpu: json(cpu)
            memory: memoryOfCpu[cpu]
          }
          volumeMounts: concat(stateMount, pooled ? resourcesMount : [])
          probes: [
            {
              type: 'Startup'
              httpGet: {
                path: '/healthz'
                port: port
              }
              initialDelaySeconds: 1
              periodSeconds: 3
              timeoutSeconds: 2
              failureThreshold: 10
            }
            {
              type: 'Liveness'
              httpGet: {
                path: '/healthz'
                port: port
              }
              periodSeconds: 10
              timeoutSeconds: 5
              failureThreshold: 6
            }
            {
              type: 'Readiness'
              httpGet: {
                path: '/readyz'
                port: port
              }
              periodSeconds: 5
              timeoutSeconds: 3
              failureThreshold: 2
            }
          ]
        }
      ]
      volumes: concat(stateVolume, pooled ? resourcesVolume : [])
      scale: {
        minReplicas: store == 'sqlite' ? 1 : minReplicas
        maxReplicas: store == 'sqlite' ? 1 : maxReplicas
        cooldownPeriod: 600
        rules: [
          {
            name: 'concurrent-talks'
            http: {
              metadata: {
                concurrentRequests: string(talksPerReplica)
              }
            }
          }
          {
            // The platform counts requests as they begin, so a talk that has lasted a while is no longer among them.
            // What it goes on using is CPU, in proportion to the talks held.
            name: 'relayed-audio'
            custom: {
              type: 'cpu'
              metadata: {
                type: 'Utilization'
                value: '60'
              }
            }
          }
        ]
      }
    }
  }
}

var signIn = {
  azureActiveDirectory: {
    enabled: true
    registration: {
      clientId: easyAuthClientId
      openIdIssuer: '${environment().authentication.loginEndpoint}${entraTenantId}/v2.0'
    }
    validation: {
      allowedAudiences: [
        easyAuthClientId
        'api://${easyAuthClientId}'
      ]
    }
  }
}

// The platform's authentication is on exactly when the broker believes its headers. It never turns anybody away itself:
// a browser's WebSocket comes with a ticket and health checks with nothing, and who may ask is the broker's to say.
// https://learn.microsoft.com/azure/templates/microsoft.app/2025-07-01/containerapps/authconfigs
resource authConfig 'Microsoft.App/containerApps/authConfigs@2025-07-01' = {
  parent: broker
  name: 'current'
  properties: {
    platform: {
      enabled: brokerAuth == 'easyauth'
    }
    globalValidation: {
      unauthenticatedClientAction: 'AllowAnonymous'
    }
    identityProviders: brokerAuth == 'easyauth' ? signIn : {}
    httpSettings: {
      requireHttps: true
    }
  }
}

@description('Where the broker answers.')
output url string = empty(publicUrl) ? 'https://${broker.properties.configuration.ingress.fqdn}' : publicUrl

@description('Name of the container app.')
output name string = broker.name

@description('The revision that this deployment made.')
output revision string = broker.properties.latestRevisionName
